"""Ranks on the CPU, forked from a process that has already imported everything."""

from __future__ import annotations

import faulthandler
import gc
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

SECONDS = 150


def on_two_ranks(work: Callable[[int], Any]) -> list[Any]:
    """`on_ranks` of two."""
    return on_ranks(2, work)


def on_ranks(count: int, work: Callable[[int], Any]) -> list[Any]:
    """`work(rank)` on each rank as torchrun would start them; their answers in the order of ranks.

    Raises:
        AssertionError: A rank failed (with its traceback) or did not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = [
            context.Process(target=_rank, args=(rank, count, port, work, folder), daemon=True) for rank in range(count)
        ]
        for rank in ranks:
            rank.start()
        end = time.monotonic() + SECONDS
        while any(rank.is_alive() for rank in ranks) and time.monotonic() < end:
            if any(rank.exitcode for rank in ranks):
                end = min(end, time.monotonic() + 1)
            time.sleep(0.02)
        late = [index for index, rank in enumerate(ranks) if rank.is_alive()]
        for index in late:
            ranks[index].kill()
            ranks[index].join()
        failures = [path.read_text() for path in sorted(folder.glob("*.txt"))]
        exits = [rank.exitcode for rank in ranks]
        crashes = [(folder / f"crash-{rank}").read_text() for rank, code in enumerate(exits) if code]
        assert exits == [0] * count, f"exit codes {exits}, late ranks {late}\n" + "\n".join(failures + crashes)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _rank(rank: int, count: int, port: int, work: Callable[[int], Any], folder: Path) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
    )
    # What earlier tests left behind belongs to threads that a forked process has not: never collect it here.
    gc.freeze()
    torch.set_num_threads(1)
    # What a rank was doing when it crashed, or hung, becomes its failure.
    crash = open(folder / f"crash-{rank}", "w")  # noqa: SIM115
    faulthandler.enable(file=crash)
    faulthandler.dump_traceback_later(SECONDS - 10, file=crash)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.txt").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os._exit(0)

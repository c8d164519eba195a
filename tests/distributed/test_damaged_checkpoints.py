"""Damaged checkpoints of two ranks: both use the same one, or both refuse; neither waits for the other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from lightning_mllm.training.checkpoints import MANIFEST, STATE, Replaced, ShardedCheckpointIO
from tests.distributed.ranks import on_two_ranks
from tests.training.checkpoints.damages import flip


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def _swapped(path: Path) -> None:
    one, two = shards(path)
    one.rename(path / "x")
    two.rename(one)
    (path / "x").rename(two)


def _of_another_step(number: int) -> Callable[[Path], object]:
    return lambda path: shutil.copyfile(shards(path.with_name("step-10"))[number], shards(path)[number])


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


NAMED: dict[str, Callable[[Path], object]] = {
    "the shard of rank 0 missing": lambda path: shards(path)[0].unlink(),
    "the shard of rank 1 missing": lambda path: shards(path)[1].unlink(),
    "the shard of rank 1 cut": lambda path: _cut(shards(path)[1]),
    "the shard of rank 1 taken from another step": _of_another_step(1),
    "the manifest missing": lambda path: (path / MANIFEST).unlink(),
    "the manifest empty": lambda path: (path / MANIFEST).write_bytes(b""),
}
"""What T12 names."""
OTHERS: dict[str, Callable[[Path], object]] = {
    "the shard of rank 0 taken from another step": _of_another_step(0),
    "the last byte of rank 1's shard flipped": lambda path: flip(shards(path)[1], -1),
    "the shards exchanged": _swapped,
    "state.pt missing": lambda path: (path / STATE).unlink(),
    "state.pt cut": lambda path: _cut(path / STATE),
    "a third shard": lambda path: shutil.copyfile(
        shards(path)[0], path / "shard-00003-model-00001-of-00001.safetensors"
    ),
    "the folder renamed while it is written": lambda path: path.rename(path.with_name(f".{path.name}.part")),
}


def saved(folder: Path) -> None:
    mesh, io = init_device_mesh("cpu", (2,)), ShardedCheckpointIO()
    for step in (10, 20):
        tensors = {f"{kind}.w": distribute_tensor(torch.full((8, 4), float(step)), mesh, [Shard(0)]) for kind in KINDS}
        io.save(folder / f"step-{step}", cast(Any, tensors), {"step": step}, Replaced("step-*", 2))
    io.teardown()


KINDS = ("weights", "exp_avg")


@pytest.mark.fault
def test_both_ranks_pass_over_the_same(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    harms = {**NAMED, **OTHERS}

    def work(rank: int) -> list[tuple[str, str]]:
        saved(tmp_path / "whole")
        chosen = []
        for number, harm in enumerate(harms.values()):
            folder = tmp_path / str(number)
            if rank == 0:
                shutil.copytree(tmp_path / "whole", folder)
                harm(folder / "step-20")
            dist.barrier()
            first = ShardedCheckpointIO().choose(folder).name
            dist.barrier()
            if rank == 0:
                shutil.rmtree(folder / "step-10")
            dist.barrier()
            with pytest.raises(ValueError, match="found no whole checkpoint, expected one to go on from") as refusal:
                ShardedCheckpointIO().choose(folder)
            chosen.append((first, str(refusal.value)))
        return chosen

    one, two = on_two_ranks(work)
    assert one == two and [name for name, _ in one] == ["step-10"] * len(harms)
    fault_row("T12", f"{len(NAMED)} of {len(NAMED)}", "damaged sharded checkpoints: both ranks use the one before")
    fault_row("T12", f"{len(OTHERS)} of {len(OTHERS)}", "other damages of sharded checkpoints, likewise")


@pytest.mark.fault
def test_a_checkpoint_on_the_disk_of_one_rank(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    def work(rank: int) -> list[str]:
        saved(tmp_path / "whole")
        dist.barrier()
        told = []
        for has in ((0,), (1,), (0, 1)):
            own = tmp_path / f"{rank}{has}"
            (own / "checkpoints").mkdir(parents=True)
            if rank in has:
                shutil.copytree(tmp_path / "whole", own / "checkpoints", dirs_exist_ok=True)
            os.chdir(own)
            dist.barrier()
            # What the command finds: a folder to go on from, or none.
            own_callback = StageCheckpoint(resume="checkpoints" if rank in has else None)
            trainer = SimpleNamespace(world_size=2, default_root_dir="run", is_global_zero=rank == 0)
            try:
                own_callback._agree(cast(Any, trainer), ShardedCheckpointIO())
                told.append("agreed")
            except ValueError as error:
                told.append(str(error).partition(": ")[2])
            # What loading finds where all were told the same folder.
            try:
                told.append(ShardedCheckpointIO().choose("checkpoints").name)
            except ValueError as error:
                told.append(str(error).partition(";")[0])
        if rank == 1:
            next(Path("checkpoints/step-20").glob("shard-00002*")).unlink()
        dist.barrier()
        told.append(ShardedCheckpointIO().choose("checkpoints").name)
        return told

    one, two = on_two_ranks(work)
    shared = ", expected a folder that all nodes share"
    none = "checkpoints: found no whole checkpoint"
    assert one == two
    assert one[0] == f"found a checkpoint on the disk of rank 0 and none on that of rank 1{shared}"
    assert one[2] == f"found a checkpoint on the disk of rank 1 and none on that of rank 0{shared}"
    assert one[1].startswith(none) and one[3].startswith(none)
    assert one[4:] == ["agreed", "step-20", "step-10"]
    fault_row("T12", "3 of 3", "checkpoints, or a shard, on one rank's disk alone: found or refused by both, no hang")

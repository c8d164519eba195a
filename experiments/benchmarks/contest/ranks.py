"""The other ranks of a contender: copies of its process."""

from __future__ import annotations

import os
import signal
import socket


class Ranks:
    """Forks so that there are `count` processes, each with the environment that torchrun would give it."""

    def __init__(self, count: int) -> None:
        self.first, self.others = True, list[int]()
        if count == 1:
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        rank = 0
        for number in range(1, count):
            if not (other := os.fork()):
                rank, self.first, self.others = number, False, []
                break
            self.others.append(other)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
        os.environ.update(GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="bench")


def end(processes: list[int]) -> None:
    """Of ranks that wait for the first one."""
    for each in processes:
        os.kill(each, signal.SIGKILL)
        os.waitpid(each, 0)


def used(process: int) -> float:
    """CPU-seconds, as Linux tells them; 0 of a process that is gone, which is counted among those that ended."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

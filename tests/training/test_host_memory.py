"""Freed blocks stay with the process: the next one costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import resource
import torch
from lightning_mllm.training.host_memory import keep_freed_blocks

def faults():
    for rounds in (30, 6):  # neighbouring free blocks have to meet first
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(rounds):
            torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(faults(), keep_freed_blocks(), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_a_large_block_is_used_again() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True).stdout.split()
    if found[1] == "True":
        assert int(found[0]) > 1000 and int(found[2]) < int(found[0]) / 5

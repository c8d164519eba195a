"""The largest memory of one rank, as `mllm memory` tells it, beside that of the device."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import torch

from lightning_mllm.commands.doctor_lines import Line, Subject
from lightning_mllm.commands.memory import GB, stage_row

OVERHEAD = 10 * GB
"""What the allocator, NCCL and CUDA itself need on a GPU (mllm memory --help)."""
PROCESS = GB
"""What Python and its libraries need on a CPU."""
REMEDY = "a smaller --hardware.micro_batch, or another --hardware; mllm memory tells the parts"


def memory(subject: Subject) -> Iterator[Line]:
    """Whether the rows of one forward pass, all as long as they may be, fit the device."""
    trainer = subject.stage.resolved["trainer"]
    on_gpu = trainer["accelerator"] in ("gpu", "cuda")
    if time.monotonic() > subject.deadline:
        remedy = f"mllm memory {subject.stage.experiment} --only {subject.stage.name}"
        yield Line(check="memory", level="yellow", found="not computed: the minute is over", remedy=remedy)
        return
    if not subject.builds:
        return
    try:
        _, found = stage_row(subject.stage.command)
    except ValueError as error:
        if not str(error).startswith("stage.global_batch"):  # which is told by the check of batches
            remedy = "correct the setting; mllm memory says the same"
            yield Line(check="memory", level="red", found=str(error), remedy=remedy)
        return
    need = found.total + (OVERHEAD if on_gpu else PROCESS)
    here = subject.device_memory or _device_memory(on_gpu)
    told = f"{found.total / GB:.1f} GB a rank, {need / GB:.1f} GB with the libraries"
    if here is None:
        remedy = "--device-memory GB compares it with that of a GPU"
        yield Line(check="memory", level="yellow", found=f"{told}; no GPU here to compare with", remedy=remedy)
    elif need > here:
        yield Line(check="memory", level="red", found=f"{told}; the device has {here / GB:.1f} GB", remedy=REMEDY)
    elif need > 0.9 * here:
        yield Line(check="memory", level="yellow", found=f"{told}; the device has {here / GB:.1f} GB", remedy=REMEDY)
    else:
        yield Line(check="memory", level="green", found=f"{told}; the device has {here / GB:.1f} GB")


def _device_memory(on_gpu: bool) -> int | None:
    """Bytes of this machine's GPU, or of its main memory; None where it has no GPU."""
    if not on_gpu:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory

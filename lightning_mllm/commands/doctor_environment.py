"""Packages and devices of this machine, and whether the stage's hardware is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version

from lightning_mllm.commands.doctor_lines import Line, Subject

MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
"""Uploads that stole credentials when they were imported (GHSA-w37p-236h-pfx3)."""
FLOORS = {"torch": "2.10", "transformers": "5.3", "lightning": "2.6.4"}
PYTHON = (3, 11)


def packages() -> Iterator[Line]:
    """Versions that are too old, or that nobody should have."""
    found = {name: _installed(name) for name in (*FLOORS, "pytorch-lightning")}
    for name, versions in MALICIOUS.items():
        if found[name] in versions:
            yield Line(
                check="packages",
                level="red",
                found=f"{name} {found[name]} is a malicious upload (GHSA-w37p-236h-pfx3)",
                remedy=f"pip install '{name}>=2.6.4', and change every password and key that was on this machine",
            )
    old = {name: least for name, least in FLOORS.items() if _older(found[name], least)}
    for name, least in old.items():
        told = f"{name} {found[name]}, expected {least} or newer" if found[name] else f"no {name}, expected {least}"
        yield Line(check="packages", level="red", found=told, remedy=f"pip install '{name}>={least}'")
    if sys.version_info[:2] < PYTHON:
        have, want = (".".join(map(str, each)) for each in (sys.version_info[:2], PYTHON))
        yield Line(check="packages", level="red", found=f"Python {have}", remedy=f"install Python {want} or newer")
    if not old:
        told = ", ".join(f"{name} {found[name]}" for name in FLOORS)
        yield Line(check="packages", level="green", found=told)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _older(found: str, least: str) -> bool:
    return not found or Version(found) < Version(least)


def devices(subject: Subject) -> Iterator[Line]:
    """Whether the Trainer's devices are here, and take the precision of the plan."""
    trainer, hardware = subject.stage.resolved["trainer"], subject.stage.resolved["hardware"]
    wanted, bf16 = trainer["devices"], "bf16" in (hardware["precision"] or "")
    if trainer["accelerator"] not in ("gpu", "cuda"):
        told = f"{trainer['accelerator']}, {torch.get_num_threads()} threads"
        yield Line(check="devices", level="green", found=f"{told}, {'bf16' if bf16 else 'float32'}")
        return
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not here:
        remedy = "run it on a machine with GPUs, or name another --hardware"
        yield Line(check="devices", level="yellow", found=f"no GPU here, the stage takes {wanted}", remedy=remedy)
    elif isinstance(wanted, int) and wanted > here:
        remedy = f"--trainer.devices={here}, or another --hardware"
        yield Line(check="devices", level="red", found=f"{here} GPUs, the stage takes {wanted}", remedy=remedy)
    elif bf16 and not torch.cuda.is_bf16_supported():
        remedy = "--hardware.precision=null, or a newer GPU"
        yield Line(check="devices", level="red", found="the GPU has no bf16, which the plan takes", remedy=remedy)
    else:
        name = torch.cuda.get_device_name(0)
        yield Line(check="devices", level="green", found=f"{here} x {name}, {'bf16' if bf16 else 'float32'}")

"""The options of a verb that asks a trained model: which one, and where it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lightning_mllm.commands.arguments import Arguments

if TYPE_CHECKING:
    import torch

    from lightning_mllm.inference.model import Model

RUN = "a run, one of its stages, a folder that mllm export wrote, or OWNER/NAME on the Hub"


def add_options(parser: Arguments) -> None:
    """Where the model runs, in which dtype, and how it is talked to."""
    parser.add_argument("--device", default="cpu", help="where to answer (cpu)")
    parser.add_argument("--dtype", help="of the weights, such as bfloat16 (that of the run)")
    parser.add_argument("--device-map", choices=["auto"], help="auto: on all accelerators of this machine")
    parser.add_argument("--template", metavar="NAME", help="a chat template, for a folder that has none or another")


def load_given(model: str, given: argparse.Namespace) -> Model:
    """The model that the options of `add_options` describe.

    Raises:
        ValueError: There is no such model, or no such device here.
    """
    from lightning_mllm.inference import load

    device = device_called(given.device)
    return load(model, device, given.template, dtype=given.dtype, device_map=given.device_map)


def device_called(name: str) -> torch.device:
    """The device, if this machine has it.

    Raises:
        ValueError: There is no such device here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"--device: found '{name}', expected a device of this machine such as cpu ({reason})"
        ) from None
    return device

"""`mllm ask RUN --image F "question"`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_mllm.commands.arguments import Arguments

if TYPE_CHECKING:
    import torch


def main(arguments: Sequence[str]) -> None:
    """Print the answer of a trained model."""
    parser = Arguments("ask", description="Ask a trained model, about pictures or without.")
    parser.add_argument("model", metavar="RUN", help="a run, one of its stages, or a folder that mllm export wrote")
    parser.add_argument("question", help="what to ask; in quotes")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        type=Path,
        metavar="F",
        help="a JPEG, PNG, WebP, GIF, BMP or TIFF; may be said several times, for pictures that follow one another",
    )
    parser.add_argument("--device", default="cpu", help="where to answer (cpu)")
    parser.add_argument("--chat", metavar="NAME", help="a chat template, for a folder that has none or another")
    given = parser.parse_args(arguments)
    for each in given.image:
        if not each.is_file():
            raise ValueError(f"--image: found no file {each}, expected a picture")

    from lightning_mllm.inference import load

    print(load(given.model, device_called(given.device), given.chat).answer(given.image, given.question))


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

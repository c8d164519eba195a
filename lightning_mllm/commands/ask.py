"""`mllm ask RUN --image F "question"`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> None:
    """Print the answer of a trained model."""
    parser = argparse.ArgumentParser(prog="mllm ask", description="Ask a trained model about a picture.")
    parser.add_argument("model", metavar="RUN", help="a run, one of its stages, or a folder that mllm export wrote")
    parser.add_argument("question", help="what to ask; in quotes")
    parser.add_argument("--image", required=True, type=Path, metavar="F", help="a JPEG, PNG, WebP, GIF, BMP or TIFF")
    parser.add_argument("--device", default="cpu", help="where to answer (cpu)")
    given = parser.parse_args(arguments)
    if not given.image.is_file():
        raise ValueError(f"--image: found no file {given.image}, expected a picture")

    from lightning_mllm.inference import load

    print(load(given.model, given.device).answer(given.image, given.question))

"""`mllm export RUN --to DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.commands.arguments import Arguments


def main(arguments: Sequence[str]) -> None:
    """Write a run as a folder that transformers loads."""
    parser = Arguments(
        "export",
        description="Write a run as a folder that transformers loads, and compare the two in a fresh process.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run or its last stage, such as runs/quickstart/llava")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="where to write; empty or absent")
    given = parser.parse_args(arguments)

    from lightning_mllm.export.export import export_run

    export_run(given.run, given.to)
    print(given.to)

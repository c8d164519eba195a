"""`mllm bench NAME`: a benchmark of `experiments/benchmarks`, a file whose `main` takes arguments; or their list."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError, nearest
from lightning_mllm.commands.experiments import shipped


def benchmarks() -> dict[str, Path]:
    """Name -> file of those that ship with the package."""
    return {path.stem: path for path in sorted((shipped() / "benchmarks").glob("*.py"))}


def what(file: Path) -> str:
    """The first sentence of its docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def main(arguments: Sequence[str]) -> None:
    """Run one, or list all.

    Raises:
        ConfigError: There is none of that name; names the nearest.
    """
    known = benchmarks()
    if not arguments:
        for name, file in known.items():
            print(f"{name:20} {what(file)}")
        return
    name, *rest = arguments
    if name not in known:
        parser = Arguments("bench", description=" ".join((__doc__ or "").split()))
        parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(known)}")
        parser.parse_args([name])
        raise ConfigError(f"bench: found {name!r}, expected one of {', '.join(known)}{nearest(name, known)}")
    folder = str(known[name].parent)
    if folder not in sys.path:
        # Benchmarks share files beside them.
        sys.path.append(folder)
    runpy.run_path(str(known[name]))["main"](rest)

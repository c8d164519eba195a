"""What importing a net brings along, read from the import statements that run on import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NETS = sorted(path.stem for path in (ROOT / "lightning_mllm/nets").glob("*.py") if path.stem != "__init__")
OURS = "lightning_mllm"
NOT_BEHIND_A_NET = {"evaluation", "interop", "training", "weights", "architectures", "processing"}
LIBRARIES = {"lightning", "torchmetrics"}


def source(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def imported(path: Path) -> set[str]:
    """Dotted names that the file imports as it is run; of `from a import b` both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def behind(module: str) -> tuple[set[str], set[str]]:
    """The modules of ours that importing `module` runs, and the libraries that these import."""
    ours: set[str] = set()
    libraries: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
        for each in parents:
            path = source(each)
            if path is None or each in ours:
                continue
            ours.add(each)
            names = imported(path)
            waiting += [found for found in names if found.split(".")[0] == OURS]
            libraries |= {found.split(".")[0] for found in names} - {OURS}
    return ours, libraries


@pytest.mark.parametrize("net", NETS)
def test_a_net_brings_few_files_and_no_training(net: str) -> None:
    ours, libraries = behind(f"{OURS}.nets.{net}")
    assert f"{OURS}.nets.{net}" in ours and len(ours) <= 20, sorted(ours)
    assert not {each for each in ours if each.split(".")[1:2] and each.split(".")[1] in NOT_BEHIND_A_NET}
    assert not libraries & LIBRARIES


def test_what_is_behind_a_module_is_found() -> None:
    ours, libraries = behind(f"{OURS}.architectures.llava")
    assert {f"{OURS}.nets.llava", f"{OURS}.training.module", f"{OURS}.evaluation"} < ours
    assert "lightning" in libraries

"""The layering of the project, read from its import statements."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each place may import of ours, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "lightning_mllm.spans": set(),
    "lightning_mllm.layout": {"lightning_mllm.spans"},
    "lightning_mllm.stages": set(),
    "lightning_mllm.contracts": {"lightning_mllm.layout", "lightning_mllm.stages"},
    "lightning_mllm.boxes": set(),
    "lightning_mllm.collectives": set(),
    "lightning_mllm.signals": set(),
    "lightning_mllm.component": set(),
    "lightning_mllm.weights": {"lightning_mllm.contracts", "lightning_mllm.component"},
    "lightning_mllm.processing": {f"lightning_mllm.{name}" for name in ("contracts", "boxes", "layout", "spans")},
    # A Q-Former may be part of a tower.
    **{
        f"lightning_mllm.{name}": {
            "lightning_mllm.contracts",
            "lightning_mllm.spans",
            "lightning_mllm.component",
            "lightning_mllm.weights",
            "lightning_mllm.interop.keys",
        }
        for name in ("connectors", "language")
    },
    "lightning_mllm.vision": {
        "lightning_mllm.contracts",
        "lightning_mllm.component",
        "lightning_mllm.weights",
        "lightning_mllm.interop.keys",
        "lightning_mllm.connectors",
    },
}
# Tables of names alone: building blocks read their own weights by them.
MAY_IMPORT["lightning_mllm.interop.keys"] = {"lightning_mllm.weights"}
L1 = {*MAY_IMPORT}
MAY_IMPORT["lightning_mllm.interop"] = L1
MAY_IMPORT["lightning_mllm.nets"] = {
    f"lightning_mllm.{name}" for name in ("contracts", "boxes", "collectives", "vision", "connectors", "language")
}
MAY_IMPORT["lightning_mllm.evaluation"] = L1
MAY_IMPORT["lightning_mllm.training"] = L1 | {f"lightning_mllm.{name}" for name in ("evaluation", "interop", "nets")}
L2 = L1 | {f"lightning_mllm.{name}" for name in ("evaluation", "interop", "nets", "training")}
MAY_IMPORT["lightning_mllm.architectures"] = L2
L4 = {f"lightning_mllm.{name}" for name in ("cli", "commands", "export", "inference", "serving")}
# The verbs reach architectures and data modules through YAML, or by walking the package of architectures (which one,
# `test_no_file_speaks_for_an_architecture` forbids them to say); `mllm world` and `mllm data` are the programs of data
# that they call.
PROGRAMS = {f"data_modules.{name}" for name in ("world.write", "judging", "listing", "synthesis.command")}
for name in L4:
    MAY_IMPORT[name] = L2 | L4 | PROGRAMS | {"lightning_mllm.architectures"}
MAY_IMPORT["lightning_mllm"] = {"lightning_mllm.inference"}
MAY_IMPORT["data_modules"] = {"lightning_mllm.contracts", "lightning_mllm.boxes"}

FORBIDDEN_LIBRARIES = {
    "lightning_mllm.contracts": {"lightning", "transformers", "open_clip", "peft", "torchmetrics", "PIL"},
    "lightning_mllm.collectives": {"lightning", "transformers", "open_clip", "peft", "torchmetrics", "PIL"},
    "lightning_mllm.boxes": {"torch", "numpy", "lightning", "transformers", "open_clip", "peft", "torchmetrics", "PIL"},
    "lightning_mllm.processing": {"lightning", "open_clip", "peft", "torchmetrics"},
    "lightning_mllm.vision": {"lightning", "torchmetrics"},
    "lightning_mllm.connectors": {"lightning", "torchmetrics", "transformers", "open_clip"},
    "lightning_mllm.language": {"lightning", "torchmetrics", "open_clip"},
    "lightning_mllm.weights": {"lightning", "transformers", "torchmetrics", "open_clip", "peft"},
    "lightning_mllm.interop": {"lightning", "torchmetrics", "peft"},
    "lightning_mllm.interop.keys": {"lightning", "transformers", "torchmetrics", "open_clip", "peft"},
    "lightning_mllm.nets": {"lightning", "torchmetrics"},
    "data_modules": {"transformers", "open_clip", "peft", "torchmetrics"},
}

FILES = [path for package in ("lightning_mllm", "data_modules") for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything `path` imports, inside functions too."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def place_of(module: str) -> str:
    places = [place for place in MAY_IMPORT if within(module, place)]
    assert places, f"{module} is in no layer"
    place = max(places, key=len)
    assert place != "lightning_mllm" or module == "lightning_mllm", f"{module} is in no layer"
    return place


def wrong_imports(path: Path) -> list[str]:
    module = module_name(path)
    place = place_of(module)
    # One architecture never imports another; everything else may import its own place.
    own = module if place == "lightning_mllm.architectures" else place
    allowed = MAY_IMPORT[place] | {own}
    wrong = []
    for line, name in imported(path):
        top = name.split(".")[0]
        if top in ("lightning_mllm", "data_modules"):
            if place == "lightning_mllm" and name == "lightning_mllm":
                continue
            if not any(within(name, each) for each in allowed):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {module} may not import {name}")
        elif top in FORBIDDEN_LIBRARIES.get(place, set()):
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {module} may not import {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_goes_down(path: Path) -> None:
    assert wrong_imports(path) == []


def test_a_wrong_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "lightning_mllm/processing/images.py"
    source.parent.mkdir(parents=True)
    source.write_text("def f():\n    from ..training.module import MultimodalModule\n    import lightning as L\n")
    assert [line.split(": ")[1] for line in wrong_imports(source)] == [
        "lightning_mllm.processing.images may not import lightning_mllm.training.module.MultimodalModule",
        "lightning_mllm.processing.images may not import lightning",
    ]


def test_architectures_do_not_know_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "lightning_mllm/architectures/one.py"
    source.parent.mkdir(parents=True)
    source.write_text("from lightning_mllm.architectures.two import Two\n")
    assert len(wrong_imports(source)) == 1


def test_no_file_speaks_for_an_architecture() -> None:
    """Deleting an architecture is deleting one file and its YAML folder."""
    names = {path.stem for path in (ROOT / "lightning_mllm/architectures").glob("*.py")} - {"__init__"}
    elsewhere = [path for path in FILES if "architectures" not in path.parts]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in elsewhere
        for line, name in imported(path)
        if any(within(name, f"lightning_mllm.architectures.{architecture}") for architecture in names)
    ]
    assert found == []


def import_graph() -> dict[str, set[str]]:
    """Module -> those that it imports, inside functions too."""
    modules = {module_name(path): path for path in FILES}

    def module_of(name: str) -> str:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    imports = {module: {module_of(name) for _, name in imported(path)} for module, path in modules.items()}
    return {module: names - {"", module} for module, names in imports.items()}


def test_no_module_imports_itself_through_others() -> None:
    graph = import_graph()
    assert "lightning_mllm.contracts" in graph["lightning_mllm.nets.llava"]
    TopologicalSorter(graph).prepare()  # a CycleError names the modules of a cycle

"""Which code a configuration may name: a stranger's YAML alone can run none but that of the packages listed here.

`PACKAGES`                  may be named
your own Python files       may be named: below the working directory, on PYTHONPATH, installed as editable
those beside other YAML     and packages that are installed: after `--trust NAME` or with MLLM_TRUST=NAME,NAME
the standard library        never: none of its classes is part of a net, of data or of the trainer

It is asked of a dotted path before anything is imported, since importing runs code, and again of what was imported,
since a module also holds what it imports. jsonargparse, which imports functions by name too, is told the same.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    "data_modules",
    "lightning",
    "lightning_mllm",
    "open_clip",
    "peft",
    "torch",
    "torchmetrics",
    "transformers",
)
"""What nets, data and trainers are made of."""
LAUNCHERS = (
    *("torch._dynamo", "torch._inductor", "torch.distributed.elastic", "torch.distributed.launch"),
    *("torch.distributed.launcher", "torch.distributed.run", "torch.hub", "torch.load", "torch.multiprocessing"),
    *("torch.package", "torch.serialization", "torch.testing", "torch.utils.benchmark", "torch.utils.cpp_extension"),
    *("transformers.cli", "transformers.dynamic_module_utils", "transformers.testing_utils"),
)
"""What of them runs programs, or code that a text names."""
VARIABLE = "MLLM_TRUST"

_own: set[str] = set()
_is_restricted = False
_folders: list[Path] = []
"""Of configuration files outside of the working directory: nothing is imported from there that was not named."""


def trusted_by(arguments: Sequence[str]) -> list[str]:
    """A command line without its `--trust NAME`, whose names are trusted in this process and in those that it starts.

    Raises:
        ValueError: One has no name.
    """
    rest, left, names = list(arguments), [], []
    while rest:
        option, equals, value = (each := rest.pop(0)).partition("=")
        if option != "--trust":
            left.append(each)
            continue
        value = value if equals or not rest else rest.pop(0)
        if not all(name.isidentifier() for name in value.split(",")):
            raise ValueError(f"--trust: found '{value}', expected the name of a package or of a module")
        names += value.split(",")
    if names:
        os.environ[VARIABLE] = ",".join((*_trusted(), *names))
    return left


def add_folders(folders: Iterable[Path]) -> None:
    """Makes modules importable that lie in these folders, behind all others; outside of the working directory only
    those that are trusted."""
    for each in folders:
        if each.is_relative_to(Path.cwd().resolve()):
            if str(each) not in sys.path:
                sys.path.append(str(each))
        elif each not in _folders:
            _folders.append(each)


def refusal(path: str) -> str:
    """Why a dotted path may not be imported, as the end of a sentence; empty where it may.

    Nothing is imported to tell.
    """
    package = path.partition(".")[0]
    if any(path == each or path.startswith(f"{each}.") for each in LAUNCHERS):
        return "which runs programs, or code that a text names, expected a part of a net, of data or of the trainer"
    if package in PACKAGES or not package.isidentifier():
        return ""
    if package in sys.stdlib_module_names or package == "__main__":
        return "which is of Python's standard library, expected a part of a net, of data or of the trainer"
    found, folder = _place(package), None
    if found is None and (folder := next((each for each in _folders if _holds(each, package)), None)) is None:
        return ""  # there is none, which is told where it is imported
    if package in _trusted():
        sys.path += [str(folder)] if folder and str(folder) not in sys.path else []
        return ""
    how = f"--trust {package} or {VARIABLE}={package} allows it"
    if folder is not None:
        return f"which lies in {folder}, outside of the working directory, expected your own or a known one; {how}"
    if found is not None and _is_installed(found):
        return f"whose package no configuration may name, expected one of {', '.join(PACKAGES)} or your own; {how}"
    return ""


def allow(path: str) -> None:
    """Tells jsonargparse of a class that may be named."""
    _own.add(path.partition(".")[0])
    if _is_restricted:
        restrict_imports()


def restrict_imports() -> None:
    """Lets jsonargparse import from `PACKAGES` and from those of classes that were named alone, and read no addresses.

    It would import any function that a text names where one is expected; Lightning lets it read addresses.
    """
    global _is_restricted
    import jsonargparse

    _is_restricted = True
    build_typed_classes_alone()
    jsonargparse.set_parsing_settings(
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=["*", *LAUNCHERS],
        import_path_allowlist=[*PACKAGES, *_trusted(), *sorted(_own)],
    )


def build_typed_classes_alone() -> None:
    """Lets jsonargparse build no class where any value may stand, such as in the configuration of a model."""
    import jsonargparse

    jsonargparse.set_parsing_settings(instantiate_subclass_spec_in_any=False)


def _trusted() -> list[str]:
    return [each.strip() for each in os.environ.get(VARIABLE, "").split(",") if each.strip().isidentifier()]


def _place(package: str) -> Path | None:
    """The folder or file of a package."""
    try:
        found: ModuleSpec | None = find_spec(package)
    except (ValueError, ImportError):
        return None
    if found is None:
        return None
    if found.has_location and found.origin:
        file = Path(found.origin).resolve()
        return file.parent if file.stem == "__init__" else file
    # A folder without __init__.py; else built into Python.
    return next((Path(each).resolve() for each in found.submodule_search_locations or ()), Path(sys.prefix))


def _holds(folder: Path, package: str) -> bool:
    return (folder / f"{package}.py").is_file() or (folder / package).is_dir()


def _is_installed(place: Path) -> bool:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = {*map(sysconfig.get_path, kinds), *site.getsitepackages(), site.getusersitepackages()}
    inside = any(place.is_relative_to(Path(each).resolve()) for each in roots)
    return inside or place == Path(sys.prefix) or bool({"site-packages", "dist-packages"} & set(place.parts))

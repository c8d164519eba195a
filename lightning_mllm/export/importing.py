"""Folders as nets: exports of ours, and published models of transformers of an architecture we have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_mllm.component import ComponentSpec
from lightning_mllm.export.own_layout import MODEL_TYPE, read_own
from lightning_mllm.interop.format import Format, folder_formats
from lightning_mllm.language.generation import Decoding
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.files import BESIDE, TensorFiles
from lightning_mllm.weights.plain_files import check_folder, read_object


@dataclass(frozen=True, kw_only=True)
class ImportedPart:
    """A part whose weights are those of a folder."""

    spec: ComponentSpec
    tensors: Mapping[str, Callable[[], Tensor]]
    """Name within the part -> how to read it."""
    fresh: Sequence[str] = ()
    """Glob patterns of what the folder's class cannot hold; fresh where nobody wrote it beside."""

    def build(self) -> nn.Module:
        return self.spec.build()

    def pretrained(self) -> Iterable[tuple[str, Tensor]]:
        for name, read in self.tensors.items():
            yield name, read()

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return self.spec.blocks(module)


def import_folder(folder: Path, chat: str | None = None) -> MultimodalModule:
    """A net, not yet built, whose parts read their weights from a folder of transformers or of our own layout.

    Args:
        folder: Of transformers, or as `OwnFolder` writes it.
        chat: A template of `processing/templates`, in place of the folder's.

    Raises:
        ValueError: It is no such folder, no architecture here reads it, it has no chat template,
            or the net has no tensor of a name that it holds.
    """
    config = _config(folder)
    if config.get("model_type") == MODEL_TYPE:
        if chat is not None:
            raise ValueError(f"chat: found {chat!r} for {folder}, expected none: an export of ours knows its own")
        return _filled(*read_own(folder, config))
    names, known = config.get("architectures") or ["none"], folder_formats()
    if names[0] not in known:
        raise ValueError(f"{folder / 'config.json'}: found a {names[0]}, expected one of {', '.join(sorted(known))}")
    form = known[names[0]]
    assert form.read is not None
    module = _module(form, form.read(folder, chat))
    files = TensorFiles(folder)
    more = TensorFiles(folder / BESIDE) if (folder / BESIDE).is_file() else {}
    beside = {name: (lambda name=name: more[name]) for name in more}
    try:
        tensors = {**form.table(module.components).lazily(files, config), **beside}
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return _filled(module, tensors, form.lacks)


def _filled(
    module: MultimodalModule, tensors: Mapping[str, Callable[[], Tensor]], lacks: Sequence[str] = ()
) -> MultimodalModule:
    """The net, whose components read their weights from `tensors`; names that match `lacks` may be missing there."""
    parts: dict[str, ComponentSpec] = {
        name: ImportedPart(
            spec=spec,
            tensors=_below(f"{name}.", tensors),
            fresh=list(_below(f"{name}.", dict.fromkeys(lacks))),
        )
        for name, spec in module.components.items()
    }
    module.components = parts
    return module


def _below(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _module(form: Format, arguments: dict[str, Any]) -> MultimodalModule:
    """The architecture of a format, with these arguments."""
    source, _, name = form.architecture.rpartition(".")
    decoding = {task: Decoding(**how) for task, how in arguments["decoding"].items()}
    return getattr(import_module(source), name)(**{**arguments, "decoding": decoding})


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: found no config.json, expected a folder of transformers")
    check_folder(folder)
    return read_object(file, "the configuration of a model")

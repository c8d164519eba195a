"""What is known of one outside format, as one object; and all of them, found by walking the package."""

from __future__ import annotations

import json
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, ProcessorMixin

from lightning_mllm.component import ComponentSpec
from lightning_mllm.language.lora import merge_lora
from lightning_mllm.processing.processor import Processor
from lightning_mllm.weights.files import BESIDE, write_tensors, write_text
from lightning_mllm.weights.keymap import KeyMap

Components = Mapping[str, ComponentSpec]
Settings = Mapping[str, object]
"""JSON, or arguments of an architecture, by name."""
Tensors = Iterator[tuple[str, Tensor]]

NOTES = "lightning_mllm.json"
"""What transformers cannot hold: read when the folder comes back, ignored by other libraries."""

ORIGINS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
"""What configurations remember of where they come from."""


@dataclass(frozen=True, kw_only=True)
class TrainedNet:
    """What a folder is made of."""

    net: nn.Module
    """Its components are its attributes: `vision`, `connector`, `language`, ..."""
    components: Components
    processor: Processor
    decoding: Mapping[str, Settings]
    """Task -> how its answers are generated."""
    lora_scale: float | None = None
    """alpha / r of the adapters, where there are any."""

    def state(self) -> Mapping[str, Tensor]:
        """All tensors under our names; adapters are folded into what they adapt."""
        state = self.net.state_dict()
        return state if self.lora_scale is None else merge_lora(state, self.lora_scale)


@dataclass(frozen=True, kw_only=True)
class HfFolder:
    """A net as a folder of transformers; `Format.write` gives it, `export` writes and checks it."""

    config: PreTrainedConfig
    processor: ProcessorMixin
    generation: GenerationConfig
    tensors: Callable[[], Tensors]
    """Names on disk and whole tensors, one at a time."""
    notes: Settings
    compared: Literal["answers", "pairs"] = "answers"
    """answers: logits at every token (of an encoder-decoder: of its decoder), and what is generated greedily; pairs:
    f[B, 3], of an image and a text the similarity, and the logits of being apart and of belonging together."""
    asks: bool = True
    """Whether the question is part of what is read: captions are written without one."""
    beside: Callable[[], Tensors] | None = None
    """Tensors of ours that the class cannot hold, under our names."""
    caveat: str = ""
    """What may explain a difference that the check finds."""
    advice: str = ""
    """What users of the folder must do themselves, since transformers does it wrong."""
    code: tuple[Path, ...] = ()
    """Files of remote code that travel along, where transformers has no class for the net."""

    def write(self, folder: Path) -> None:
        """Writes every file of the folder.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.code:
            shutil.copyfile(file, folder / file.name)
        self.config.save_pretrained(folder)
        self.generation.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        # Engines other than transformers 5 look for the image settings in a file of their own.
        image: Any = getattr(self.processor, "image_processor", None)
        if image is not None:
            image.save_pretrained(folder)
        write_text(folder / NOTES, json.dumps(self.notes, indent=2) + "\n")
        write_tensors(folder / "model.safetensors", self.tensors())
        if self.beside is not None:
            write_tensors(folder / BESIDE, self.beside())
        for file in folder.rglob("*config.json"):
            _forget_origins(file)


def _forget_origins(file: Path) -> None:
    """Takes out of a configuration where, on the machine that writes it, its components were read from."""

    def kept(value: object) -> object:
        if isinstance(value, dict):
            return {name: kept(each) for name, each in value.items() if name not in ORIGINS}
        return [kept(each) for each in value] if isinstance(value, list) else value

    found = json.loads(file.read_text(encoding="utf-8"))
    if kept(found) != found:
        write_text(file, json.dumps(kept(found), indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class Format:
    """An outside format of the checkpoints of one architecture."""

    architecture: str
    """The dotted path of its LightningModule; nothing here imports it."""
    keys: KeyMap | Callable[[Components], KeyMap]
    """Our names <-> theirs; a function of the components where it depends on their sizes (none: the published ones)."""
    hf_class: str = ""
    """Of a folder that transformers loads: what `architectures` of its config.json says; "" for files alone."""
    write: Callable[[TrainedNet], HfFolder] | None = None
    """A net as such a folder; ValueError for a net that the format cannot hold."""
    read: Callable[[Path, str | None], dict[str, object]] | None = None
    """The arguments of the architecture for the net of a folder, its components without weights; the second argument is
    a chat template in place of the folder's."""
    holds: Callable[[Processor], bool] = lambda processor: True
    """Which nets of the architecture such a folder holds, told by their processor, where several formats share them."""
    lacks: tuple[str, ...] = ()
    """Glob patterns of our tensors that the class cannot hold."""

    def table(self, components: Components) -> KeyMap:
        return self.keys if isinstance(self.keys, KeyMap) else self.keys(components)


@cache
def formats() -> dict[str, tuple[Format, ...]]:
    """Every format: name of its file or package -> what it defines."""
    import lightning_mllm.interop as package

    found: dict[str, tuple[Format, ...]] = {}
    for each in pkgutil.iter_modules(package.__path__):
        source = vars(import_module(f"{package.__name__}.{each.name}"))
        if mine := tuple(value for value in source.values() if isinstance(value, Format)):
            found[each.name] = mine
    return found


def formats_of(architecture: type[nn.Module]) -> Iterator[tuple[str, Format]]:
    """The formats of an architecture, or of the one that it is derived from."""
    paths = {f"{each.__module__}.{each.__qualname__}" for each in architecture.__mro__}
    for name, mine in formats().items():
        yield from ((name, each) for each in mine if each.architecture in paths)


def folder_format(architecture: type[nn.Module], processor: Processor) -> Format | None:
    """The format of the folders that hold such a net; None if no class of transformers does."""
    known = (each for _, each in formats_of(architecture) if each.write is not None)
    return next((each for each in known if each.holds(processor)), None)


def key_maps(architecture: type[nn.Module], components: Components) -> dict[str, KeyMap]:
    """The tables by which foreign weights of an architecture are renamed: name of the format -> table."""
    return {name: each.table(components) for name, each in formats_of(architecture)}


def folder_formats() -> dict[str, Format]:
    """`architectures` of a config.json -> the format that reads and writes such folders."""
    return {each.hf_class: each for mine in formats().values() for each in mine if each.hf_class}

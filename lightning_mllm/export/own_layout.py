"""Folders of our own layout, for nets that no class of transformers holds; `load` reads them back.

config.json          the architecture, by its dotted path in this package, and its arguments
model.safetensors    every tensor under our names; adapters are folded into what they adapt
parts/NAME           configuration and tokenizer of a language model, a tokenizer of a Q-Former

All that the arguments name is inside: a text `folder:parts/language` is a path in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from transformers.utils import cached_file

from lightning_mllm.commands.signatures import import_class
from lightning_mllm.commands.trust import build_typed_classes_alone
from lightning_mllm.interop.format import ORIGINS
from lightning_mllm.language.lora import merge_lora
from lightning_mllm.language.source import LanguageSource
from lightning_mllm.language.tokenizer import load_tokenizer
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.vision.source import OpenClipSource
from lightning_mllm.weights.files import PACKAGE, TensorFiles, resource, write_tensors, write_text

MODEL_TYPE = "lightning_mllm"
"""Of config.json: no class of transformers is called so."""
INSIDE = "folder:"
OURS = "lightning_mllm."
TOKENIZERS = ("reader", "tokenizer")
"""Arguments of architectures that name a tokenizer."""
HERE = ("runs", "stage")
"""Arguments of training, which a folder has no use for."""


@dataclass(frozen=True, kw_only=True)
class OwnFolder:
    """A net as a folder of ours; what `export` asks of it is what it asks of `HfFolder`."""

    module: MultimodalModule
    settings: Mapping[str, Any]
    """`class_path` and `init_args`, as a run records them."""
    compared: Literal["answers", "pairs"] = "answers"
    asks: bool = True
    caveat: str = ""
    advice: str = ""
    code: tuple[Path, ...] = ()

    def write(self, folder: Path) -> None:
        """Writes every file of the folder.

        Raises:
            ValueError: An argument names a class of another package, or something on this machine.
            OSError: The disk is full or the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path, given = self.settings["class_path"], self.settings["init_args"]
        arguments = {name: value for name, value in given.items() if name not in HERE}
        specs = _instances(path, arguments)
        inside = {name: _inside(value, specs[name], folder, name) for name, value in arguments.items()}
        _check_classes({"class_path": path, "init_args": inside}, "model")
        config = {"architectures": [path], "model_type": MODEL_TYPE, "init_args": inside}
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        write_tensors(folder / "model.safetensors", self._tensors())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        lora, state = self.module.lora, self.module.net.state_dict()
        yield from (state if lora is None else merge_lora(state, lora.scale)).items()


def read_own(folder: Path, config: Mapping[str, Any]) -> tuple[MultimodalModule, Mapping[str, Callable[[], Tensor]]]:
    """The net of a folder of ours, not yet built, and how each of its tensors is read.

    Args:
        folder: Of `OwnFolder`.
        config: Its config.json.

    Raises:
        ValueError: A class that is none of this package, an argument that it does not take, a path that leads outside.
    """
    (path,), arguments = config["architectures"], config.get("init_args")
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{folder / 'config.json'}: found no init_args, expected the arguments of {path}")
    found = {"class_path": path, "init_args": _outside(arguments, folder)}
    _check_classes(found, f"{folder / 'config.json'}")
    build_typed_classes_alone()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MultimodalModule, "model", required=True)
    try:
        module = parser.instantiate(parser.parse_object({"model": found}))["model"]
    except ArgumentError as error:
        raise ValueError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from None
    files = TensorFiles(folder)
    return module, {name: (lambda name=name: files[name]) for name in files}


def _instances(path: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of an architecture as objects: its specs, built from their YAML."""
    module, _, name = path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(import_module(module), name), "net", instantiate=False)
    return vars(parser.instantiate(parser.parse_object({"net": deepcopy(dict(arguments))}))["net"])


def _inside(node: object, value: object, folder: Path, name: str) -> object:
    """An argument, as YAML states it, with no path that leads out of the folder.

    Args:
        node: As stated.
        value: The object that it stands for.
        folder: Where its files are written.
        name: Of the argument, dotted.
    """
    if isinstance(node, Mapping) and is_dataclass(value):
        stated = node.get("init_args", {}) if "class_path" in node else node
        fields = {
            key: _inside(each, getattr(value, key, None), folder, f"{name}.{key}") for key, each in stated.items()
        }
        fields |= _facts(value, folder, name)
        return {**node, "init_args": fields} if "class_path" in node else fields
    if isinstance(node, Mapping) and isinstance(value, Mapping):
        return {key: _inside(each, value.get(key), folder, f"{name}.{key}") for key, each in node.items()}
    if isinstance(node, list) and isinstance(value, Sequence):
        pairs = enumerate(zip(node, value, strict=True))
        return [_inside(each, other, folder, f"{name}.{i}") for i, (each, other) in pairs]
    if name in TOKENIZERS and isinstance(node, str) and node:
        return _tokenizer(node, folder, name)
    return node


def _facts(spec: object, folder: Path, name: str) -> dict[str, Any]:
    """What a spec says in a folder: no weights of its own, and its configuration stated or beside it."""
    if isinstance(spec, LanguageSource):
        model = _tokenizer(spec.model, folder, name) if spec.model else ""
        if spec.config is None:
            # As it is: what transformers makes of a configuration when it writes one is not always what it read.
            found = cached_file(str(resource(spec.model)), "config.json")
            assert found is not None
            _write_settings(folder / model.removeprefix(INSIDE) / "config.json", Path(found))
        return {"model": model, "weights": None, "previous_token_heads": 0}
    if isinstance(source := getattr(spec, "source", None), OpenClipSource):
        mean, std = source.statistics()
        stated = {"model_cfg": source.model_config(), "preprocess_cfg": {"mean": list(mean), "std": list(std)}}
        return {"model": "", "weights": None, "config": stated}
    return {key: empty for key, empty in (("weights", None), ("bert", "")) if hasattr(spec, key)}


def _tokenizer(source: str, folder: Path, name: str) -> str:
    path = PurePosixPath("parts", name)
    load_tokenizer(source).save_pretrained(folder / path)
    _write_settings(folder / path / "tokenizer_config.json", folder / path / "tokenizer_config.json")
    return f"{INSIDE}{path}"


def _write_settings(to: Path, source: Path) -> None:
    """A file of settings without where it was read from."""
    found = json.loads(source.read_text(encoding="utf-8"))
    kept = {key: value for key, value in found.items() if key not in ORIGINS}
    write_text(to, json.dumps(kept, indent=2) + "\n")


def _outside(node: object, folder: Path) -> object:
    """Arguments with paths in the folder as paths of this machine.

    Raises:
        ValueError: One leads out of the folder, or is one of another machine.
    """
    if isinstance(node, Mapping):
        return {key: _outside(each, folder) for key, each in node.items()}
    if isinstance(node, list):
        return [_outside(each, folder) for each in node]
    if not isinstance(node, str):
        return node
    if node.startswith(("/", "~", PACKAGE)) or ".." in PurePosixPath(node).parts:
        raise ValueError(f"{folder / 'config.json'}: found the path {node!r}, expected paths inside of the folder")
    return str(folder / node.removeprefix(INSIDE)) if node.startswith(INSIDE) else node


def _check_classes(node: object, where: str) -> None:
    """ValueError if a class of another package is named: loading never runs code of somebody else."""
    for each in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        _check_classes(each, where)
    if isinstance(node, Mapping) and "class_path" in node:
        # A module of ours has the names of what it imports, too.
        name, expected = str(node["class_path"]), f"expected one of {OURS.rstrip('.')}: a folder holds no code"
        if not name.startswith(OURS) or not import_class(name, where).__module__.startswith(OURS):
            raise ValueError(f"{where}: found the class {name}, {expected}")

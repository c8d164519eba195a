"""Folders of strangers' models: one sentence that names the folder, whatever is wrong, and no hang."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.tokenizer import load_tokenizer

LLAMA = Path(str(files("lightning_mllm") / "backbones/llama"))
CONFIG, TOKENIZER, TENSORS, INDEX = "config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"
Damage = Callable[[Path], object]


def content(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def setting(name: str, **values: object) -> Damage:
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **values}))


def other(name: str, make: Damage) -> Damage:
    return lambda folder: ((folder / name).unlink(missing_ok=True), make(folder / name))


def header(value: object, data: bytes = b"", size: int | None = None) -> Damage:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return content(TENSORS, struct.pack("<Q", len(text) if size is None else size) + text + data)


def index(value: object) -> Damage:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda folder: ((folder / TENSORS).rename(folder / "a.safetensors"), (folder / INDEX).write_bytes(text))


TWO = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
FILES: dict[str, Damage] = {
    f"{name}: {what}": damage
    for name in (CONFIG, TOKENIZER, "tokenizer_config.json")
    for what, damage in {
        "empty": content(name, b""),
        "half": lambda folder, name=name: os.truncate(folder / name, 40),
        "a list": content(name, b"[]"),
        "null": content(name, b"null"),
        "deep": content(name, b"[" * 100_000),
        "digits": content(name, b'{"a":' + b"9" * 5000 + b"}"),
        "not UTF-8": content(name, b'{"a": "\xff"}'),
        "a pipe": other(name, os.mkfifo),
        "a folder": other(name, Path.mkdir),
        "a link to itself": other(name, lambda path: path.symlink_to(path)),
        "an endless device": other(name, lambda path: path.symlink_to("/dev/zero")),
        "a terabyte": lambda folder, name=name: os.truncate(folder / name, 1 << 40),
    }.items()
}
VALUES: dict[str, Damage] = {
    "sizes as texts": setting(CONFIG, hidden_size="big"),
    "sizes below zero": setting(CONFIG, hidden_size=-1),
    "no heads": setting(CONFIG, num_attention_heads=0),
    "a list of layers": setting(CONFIG, num_hidden_layers=[1]),
    "a billion layers": setting(CONFIG, num_hidden_layers=10**9),
    "no words": setting(CONFIG, vocab_size=0),
    "an activation that is none": setting(CONFIG, hidden_act="os.system"),
    "a dtype that is none": setting(CONFIG, dtype="pickle"),
    "a type that is a path": setting(CONFIG, model_type="../../x"),
    "code of the folder": setting(CONFIG, auto_map={"AutoConfig": "evil.Config"}, model_type="evil"),
    "tokenizer without a model": setting(TOKENIZER, model=None),
    "tokenizer of no kind": setting(TOKENIZER, model={"type": "Evil"}),
    "tokens that are a number": setting(TOKENIZER, added_tokens=5),
    "a class that is a number": setting("tokenizer_config.json", tokenizer_class=5),
    "a token that is a number": setting("tokenizer_config.json", bos_token=5),
    "tokens without a text": setting("tokenizer_config.json", added_tokens_decoder={"x": 1}),
}
WEIGHTS: dict[str, Damage] = {
    "cut": lambda folder: os.truncate(folder / TENSORS, 5000),
    "nothing": content(TENSORS, b""),
    "a header of 4 exabytes": header(b"{}", size=1 << 62),
    "a header of 200 MB": header(b"{}", size=200 << 20),
    "a header that is a list": header([]),
    "no tensors": header({}),
    "notes alone": header({"__metadata__": {"a": "b"}}),
    "two tensors in one place": header({"a": TWO, "b": TWO}, bytes(8)),
    "a hole": header({"a": {**TWO, "data_offsets": [8, 16]}}, bytes(16)),
    "before the file": header({"a": {**TWO, "data_offsets": [-8, 0]}}),
    "an unknown dtype": header({"a": {**TWO, "dtype": "EVIL"}}, bytes(8)),
    "another shape": header({"a": {**TWO, "shape": [3]}}, bytes(8)),
    "a shape beyond numbers": header({"a": {**TWO, "shape": [1 << 40, 1 << 40]}}, bytes(8)),
    "bytes behind the end": lambda folder: (folder / TENSORS).open("ab").write(bytes(8)),
    "other tensors": header({"a": TWO}, bytes(8)),
    "pickle": content(TENSORS, b"\x80\x02c__builtin__\neval\n"),
    "a pipe": other(TENSORS, os.mkfifo),
    "an endless device": other(TENSORS, lambda path: path.symlink_to("/dev/zero")),
    "an index of a file outside": index({"weight_map": {"a": "../../x.safetensors"}}),
    "an index of the folder": index({"weight_map": {"a": "."}}),
    "an index of numbers": index({"weight_map": {"a": 5}}),
    "an index of nothing": index({"weight_map": {}}),
    "an index that is a list": index([]),
    "an index that is deep": index(b"[" * 100_000),
    "an index of a missing file": index({"weight_map": {"a": "gone.safetensors"}}),
    "an index of other tensors": index({"weight_map": {"a": "a.safetensors"}}),
}


def use(folder: Path) -> None:
    language = CausalLM(model=str(folder))
    assert language.width is not None and language.vocab is not None and len(load_tokenizer(str(folder)))
    with torch.device("meta"):
        language.build()
    assert len(dict(language.pretrained() or ()))


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["files", "values", "weights"])
def test_folders_of_strangers(kind: str, tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    use(LLAMA)
    chosen = {"files": FILES, "values": VALUES, "weights": WEIGHTS}[kind]
    for name, damage in chosen.items():
        shutil.copytree(LLAMA, folder := tmp_path / "model")
        damage(folder)
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"model") as caught:
            use(folder)
        said = str(caught.value)
        assert str(folder) in said and "\n" not in said and len(said) < 700, (name, said)
        assert time.monotonic() - began < 10, name
        shutil.rmtree(folder)
    fault_row(
        "T13", f"{len(chosen)} of {len(chosen)}", f"a stranger's model folder, wrong {kind}: one sentence, no hang"
    )

"""What the formats say of a net of the tests."""

from __future__ import annotations

from lightning_mllm.interop import format as formats
from lightning_mllm.interop.format import Format, key_maps
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.keymap import KeyMap


def keys(net: MultimodalModule, name: str) -> KeyMap:
    """The table of one of its formats, by the format's file."""
    return key_maps(type(net), net.components)[name]


def folder_format(net: MultimodalModule) -> Format:
    """That of its folders."""
    found = formats.folder_format(type(net), net.processor)
    assert found is not None
    return found

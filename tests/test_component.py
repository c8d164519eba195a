from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lightning_mllm.component import ComponentSpec, Composite, PartlyFresh, ResizableComponent
from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.vision.tower import TINY_TOWER
from lightning_mllm.weights.files import write_tensors


class Pair(Composite):
    def __init__(self, parts: Mapping[str, ComponentSpec]) -> None:
        self._parts = parts

    @property
    def components(self) -> Mapping[str, ComponentSpec]:
        return self._parts

    def build(self) -> nn.Module:
        return nn.ModuleDict({name: spec.build() for name, spec in self.components.items()})


def test_a_part_of_fresh_parts_is_fresh() -> None:
    pair = Pair({"one": TINY_TOWER, "two": TINY_TOWER})
    assert isinstance(pair, ComponentSpec) and isinstance(pair, ResizableComponent) and isinstance(pair, PartlyFresh)
    assert pair.pretrained() is None
    assert len(pair.blocks(pair.build())) == 4


def test_names_stand_below_those_of_the_parts(tmp_path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"bert.embeddings.LayerNorm.weight": torch.ones(16)})
    reader = QFormerConnector(bert=str(tmp_path), width=16, heads=2, in_width=8, layers=1)
    pair = Pair({"one": reader, "two": TINY_TOWER})
    assert [name for name, _ in pair.pretrained() or ()] == ["one.norm.weight"]
    # What BERT has not, and a part that has no source at all.
    assert pair.fresh == ["one.queries", "one.layers.*.cross_attention.*", "two.*"]
    positions = torch.randn(5, 32)
    found = pair.resized("two.positional_embedding", positions, (10, 32))
    assert found is not None and found.shape == (10, 32)
    assert (
        pair.resized("two.conv1.weight", positions, (1,)) is None and pair.resized("three.x", positions, (1,)) is None
    )

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.component import ComponentSpec, PartlyFresh, ResizableComponent
from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.vision.eva import EvaTower
from lightning_mllm.vision.qformer_tower import QFormerTower
from lightning_mllm.weights.files import write_tensors
from lightning_mllm.weights.stage_weights import write_stage
from tests.connectors.qformers import HF_SIZES, SIZES
from tests.vision.evas import TINY, pixels
from tests.vision.towers import images, shaken

QFORMER = QFormerConnector(**{**SIZES, "in_width": 0})
SPEC = QFormerTower(weights=None, vision=EvaTower(**TINY), qformer=QFORMER)


def filled(spec: QFormerTower) -> Any:
    tower = spec.build()
    tower.load_state_dict(dict(spec.pretrained() or ()), strict=True)
    return tower.eval()


def test_a_folder_of_blip2_gives_its_queries(tmp_path: Path) -> None:
    config = Blip2Config(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 12,
            "patch_size": 4,
        },
        qformer_config={**HF_SIZES, "encoder_hidden_size": 16},
        text_config=OPTConfig(
            hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16, word_embed_proj_dim=8
        ).to_dict(),
        num_query_tokens=3,
    )
    theirs: Any = shaken(Blip2ForConditionalGeneration(config)).eval()
    for layer in theirs.vision_model.encoder.layers:
        layer.self_attn.qkv.bias.data[16:32] = 0  # of the keys, which here have none
    theirs.save_pretrained(tmp_path)
    spec = replace(SPEC, weights=str(tmp_path))
    assert isinstance(spec, ComponentSpec) and isinstance(spec, ResizableComponent) and isinstance(spec, PartlyFresh)
    tower, seen = filled(spec), images(12)
    seen_by = theirs.vision_model(pixel_values=pixels(seen, tower.vision)).last_hidden_state
    expected = theirs.qformer(
        query_embeds=theirs.query_tokens.expand(2, -1, -1), encoder_hidden_states=seen_by
    ).last_hidden_state
    found = tower(seen)
    assert found.shape == (2, 3, 16) == (2, spec.num_vectors, spec.width) and spec.image_size == 12
    assert_close(found, expected, atol=1e-5, rtol=0)
    assert spec.fresh == ()


def test_a_run_of_ours_over_the_weights_it_was_trained_from(tmp_path: Path) -> None:
    """What a run never trained is not in its folder: the frozen encoder comes from where the run had it from."""
    settings: dict[str, Any] = {**TINY, "image_size": 16, "patch_size": 8}
    module = Blip2Representation.tiny(vision=EvaTower(**settings), qformer=replace(QFORMER, vocab=260), tokenizer="")
    module.configure_model()
    net: Any = shaken(module.net).eval()
    write_tensors(tmp_path / "eva.safetensors", {n: t for n, t in _timm(net.vision)})
    state = {n: t for n, t in net.state_dict().items() if not n.startswith("vision.")}
    write_stage(tmp_path / "runs/representation", state, stage="representation", settings={}, init_from={}, steps=1)
    spec = QFormerTower(
        weights=str(tmp_path / "runs/representation"),
        vision=EvaTower(**{**settings, "weights": str(tmp_path / "eva.safetensors")}),
        ln_vision=LayerNormConnector(eps=net.ln_vision.eps),
        qformer=QFORMER,
    )
    seen = images(16)
    expected = net.qformer.encode_images(net.ln_vision(net.vision(seen)))
    assert_close(filled(spec)(seen), expected, atol=1e-5, rtol=0)


def _timm(vision: Any) -> Any:
    from lightning_mllm.interop.keys.eva import EVA_KEYS

    return EVA_KEYS.to_theirs(vision.state_dict().items())


def test_each_part_has_its_own_source_where_the_whole_has_none(tmp_path: Path) -> None:
    assert SPEC.pretrained() is None
    write_tensors(tmp_path / "eva.safetensors", {n: t for n, t in _timm(SPEC.vision.build())})
    spec = replace(SPEC, vision=EvaTower(**{**TINY, "weights": str(tmp_path / "eva.safetensors")}))
    names = set(dict(spec.pretrained() or ()))
    assert names == {name for name in spec.build().state_dict() if name.startswith("vision.")}
    assert spec.fresh == ["ln_vision.*", "qformer.*"]


def test_positions_are_resized_as_the_encoder_does_it() -> None:
    positions = torch.randn(1, 10, 16)
    found = SPEC.resized("vision.pos_embed", positions, (1, 26, 16))
    assert found is not None
    assert_close(found, SPEC.vision.resized("pos_embed", positions, (1, 26, 16)))
    assert SPEC.resized("ln_vision.weight", positions, (3,)) is None


def test_every_parameter_learns_and_a_frozen_tower_has_no_autograd() -> None:
    tower, seen = shaken(SPEC.build()).eval(), images(12)
    out = tower(seen)
    (out * torch.randn_like(out)).sum().backward()
    # A bias of keys moves all logits of a query alike.
    still = {name for name, p in tower.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6}
    assert all(name.endswith("attention.key.bias") for name in still), still
    assert not tower.requires_grad_(False)(seen).requires_grad
    assert len(SPEC.blocks(tower)) == 2 + 3


def test_defaults_are_blip2s_as_sphinx_runs_it() -> None:
    spec = QFormerTower()
    assert (spec.image_size, spec.width, spec.num_vectors, spec.ln_vision.eps) == (224, 768, 32, 1e-6)


def test_weights_of_another_net_are_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"conv1.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"cannot be renamed; hf: tensor 'conv1\.weight' has no name here"):
        filled(replace(SPEC, weights=str(tmp_path)))

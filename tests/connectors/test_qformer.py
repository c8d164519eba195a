from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM, BertModel

from lightning_mllm.component import ComponentSpec, PartlyFresh, ResizableComponent
from lightning_mllm.connectors.qformer import QFormer
from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.training.initialise import build_empty, initialise, materialise
from lightning_mllm.weights.files import write_tensors
from lightning_mllm.weights.stage_weights import InitialTensors
from tests.connectors.qformers import SIZES, qformer, rows

VISUAL_WIDTH = SIZES["in_width"]


def count(module: torch.nn.Module, *without: str) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if not any(each in name for each in without))


def test_published_sizes() -> None:
    spec = QFormerConnector(in_width=1408)
    with torch.device("meta"):
        nets = {text: replace(spec, text=text).build() for text in ("none", "instruction", "full")}
    queries, feed_forward = 32 * 768, 4_723_968
    assert count(nets["none"]) == 105_137_664 + queries
    assert count(nets["full"], "words", "positions") == 105_137_664 + 12 * feed_forward + queries
    assert count(nets["full"]) == 185_660_160 + queries
    assert count(nets["instruction"]) == 185_660_160 + queries - feed_forward


def test_one_pass_with_a_mask_is_the_passes_apart() -> None:
    """BLIP-2, fig. 2: the three masks are three ways to see, of one function."""
    net = qformer("full")
    visual = torch.randn(3, 5, VISUAL_WIDTH)
    for side in ("right", "left"):
        tokens, real = rows(6, 4, 1, side=side)
        seen, kept = net.encode_images_with_cache(visual)
        assert_close(seen, net.encode_images(visual), atol=0, rtol=0)
        queries, both = seen.shape[1], seen.shape[1] + tokens.shape[1]

        apart = torch.zeros(3, both, both, dtype=torch.bool)
        apart[:, :queries, :queries] = True
        apart[:, queries:, queries:] = real[:, None]
        x = net.masked(visual, tokens, real, apart)
        assert_close(x[:, :queries], seen, atol=1e-6, rtol=0)
        assert_close(x[:, queries:][real], net.encode_text(tokens, real)[real], atol=1e-6, rtol=0)

        causal = apart.clone()
        causal[:, queries:, :queries] = True
        causal[:, queries:, queries:] &= torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        x = net.masked(visual, tokens, real, causal)
        assert_close(x[:, :queries], seen, atol=1e-6, rtol=0)
        assert_close(x[:, queries:][real], net.decode_text(tokens, real, kept)[real], atol=1e-6, rtol=0)

        every = torch.cat([torch.ones(3, queries, dtype=torch.bool), real], 1)[:, None].expand(3, both, both)
        x = net.masked(visual, tokens, real, every)
        assert_close(x, net.encode_multimodal(visual, tokens, real), atol=1e-6, rtol=0)
        assert_close(x[:, :queries], net.encode_instructed(visual, tokens, real), atol=1e-6, rtol=0)
        # The masks are not alike, or the law would say nothing.
        assert (x[:, :queries] - seen).abs().max() > 1e-2


def changed(before: Tensor, after: Tensor) -> list[bool]:
    return ((before - after).abs().amax(dim=(0, 2)) > 1e-5).tolist()


def test_writing_is_causal_and_sees_the_image() -> None:
    net = qformer("full")
    visual, (tokens, real) = torch.randn(1, 4, VISUAL_WIDTH), rows(5)
    _, kept = net.encode_images_with_cache(visual)
    written = net.decode_text(tokens, real, kept)
    for place in range(5):
        other = tokens.clone()
        other[0, place] = 1 + other[0, place] % 20
        assert changed(written, net.decode_text(other, real, kept)) == [t >= place for t in range(5)]
    _, elsewhere = net.encode_images_with_cache(visual + 1)
    assert changed(written, net.decode_text(tokens, real, elsewhere)) == [True] * 5


def test_padding_changes_nothing() -> None:
    net = qformer("full")
    visual, (tokens, real) = torch.randn(2, 4, VISUAL_WIDTH), rows(5, 2)
    _, kept = net.encode_images_with_cache(visual)
    for run in (
        net.encode_text,
        lambda t, r: net.decode_text(t, r, kept),
        lambda t, r: net.encode_instructed(visual, t, r),
    ):
        other = tokens.masked_fill(~real, 7)
        assert_close(run(tokens, real), run(other, real), atol=0, rtol=0)


def test_text_alone_never_touches_the_image_side() -> None:
    net = qformer("full")
    net.encode_text(*rows(4)).sum().backward()
    untouched = {name for name, p in net.named_parameters() if p.grad is None}
    assert {name.split(".")[2] for name in untouched if "layers" in name} == {"cross_attention", "query_feed_forward"}
    assert untouched - {name for name in untouched if "layers" in name} == {"queries"}


@pytest.mark.parametrize("text", ["none", "instruction", "full"])
def test_every_parameter_has_a_gradient(text: str) -> None:
    net = qformer(text)
    visual, (tokens, real) = torch.randn(2, 4, VISUAL_WIDTH), rows(4, 3)
    outputs = [net.encode_images(visual)] if text == "none" else [net.encode_instructed(visual, tokens, real)]
    if text == "full":
        outputs.append(net.encode_text(tokens, real))
    torch.cat(outputs, dim=1).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_dropout_only_in_training_mode() -> None:
    net, visual = qformer("none"), torch.randn(2, 4, VISUAL_WIDTH)
    assert torch.equal(net.encode_images(visual), net.encode_images(visual))
    net.train()
    assert not torch.equal(net.encode_images(visual), net.encode_images(visual))


def test_under_autocast_and_with_a_tower_of_16_bits() -> None:
    net, visual = qformer("full"), torch.randn(2, 4, VISUAL_WIDTH)
    tokens, real = rows(4, 3)
    exact = net.encode_multimodal(visual, tokens, real)
    assert_close(net.encode_multimodal(visual.half(), tokens, real), exact, atol=1e-2, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, kept = net.encode_images_with_cache(visual)
        assert net.decode_text(tokens, real, kept).dtype == torch.float32
        assert_close(net.encode_multimodal(visual, tokens, real), exact, atol=0.15, rtol=0)


def test_bert_starts_with_small_values_and_no_bias() -> None:
    state = QFormerConnector(**{**SIZES, "width": 64, "vocab": 999, "text": "full"}).build().state_dict()
    for name, tensor in state.items():
        if name.endswith("norm.weight"):
            assert (tensor == 1).all(), name
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.2), name


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"qformer\.heads: found 5, expected a divisor of the width 768"):
        QFormerConnector(heads=5)
    with pytest.raises(ValueError, match=r"qformer\.cross_every: found 0, expected at least 1"):
        QFormerConnector(cross_every=0)


# What BERT gives.


def bert(folder: Path, *, vocab: int = 20, head: bool = True) -> dict[str, Tensor]:
    """A small BERT in `folder`, and its tensors."""
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=9,
    )
    model = BertForMaskedLM(config) if head else BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return {name.removeprefix("bert."): tensor for name, tensor in model.state_dict().items()}


def started(spec: QFormerConnector) -> tuple[QFormer, dict[str, str]]:
    module: Any = torch.nn.ModuleDict({"qformer": build_empty(spec)})
    materialise(module, torch.device("cpu"))
    seen = initialise(module, {"qformer": spec}, InitialTensors({}, {}))
    return module["qformer"], {name.removeprefix("qformer."): source for name, source in seen.items()}


@pytest.mark.parametrize("head", [True, False], ids=["with a head", "bare"])
def test_what_bert_has_and_what_is_fresh(tmp_path: Path, head: bool) -> None:
    known = bert(tmp_path, head=head)
    spec = QFormerConnector(**{**SIZES, "text": "full", "bert": str(tmp_path)})
    assert isinstance(spec, ComponentSpec) and isinstance(spec, PartlyFresh) and isinstance(spec, ResizableComponent)
    net, source = started(spec)
    state = net.state_dict()
    assert {name for name in state if source[name] == "fresh"} == {
        "queries",
        *(name for name in state if "cross_attention" in name),
    }
    assert source["words.weight"] == "pretrained, resized"
    for n in range(3):
        for name in ("up.weight", "up.bias", "down.weight", "down.bias", "norm.weight", "norm.bias"):
            ours = state[f"layers.{n}.text_feed_forward.{name}"]
            assert torch.equal(state[f"layers.{n}.query_feed_forward.{name}"], ours)
            assert ours.std() > 0.1
        there = f"encoder.layer.{n}."
        assert torch.equal(state[f"layers.{n}.text_feed_forward.up.weight"], known[f"{there}intermediate.dense.weight"])
        assert torch.equal(state[f"layers.{n}.text_feed_forward.down.weight"], known[f"{there}output.dense.weight"])
        key = f"{there}attention.self.key.weight"
        assert torch.equal(state[f"layers.{n}.self_attention.key.weight"], known[key])
    assert torch.equal(state["words.weight"][:20], known["embeddings.word_embeddings.weight"])
    assert 0 < state["words.weight"][20].std() < 0.05
    assert torch.equal(state["norm.bias"], known["embeddings.LayerNorm.bias"])
    assert 0.01 < state["queries"].std() < 0.03


def test_text_read_alone_is_berts_own_without_its_segments(tmp_path: Path) -> None:
    bert(tmp_path, head=False)
    net, _ = started(QFormerConnector(**{**SIZES, "text": "full", "bert": str(tmp_path)}))
    theirs = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    theirs.embeddings.token_type_embeddings.weight.data.zero_()
    tokens, real = rows(6, 3, vocab=20)
    expected = theirs(input_ids=tokens.clamp(min=0), attention_mask=real.long()).last_hidden_state
    assert_close(net.eval().encode_text(tokens, real)[real], expected[real], atol=1e-5, rtol=0)


def test_old_names_of_the_norms(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    known = bert(new)
    old.mkdir()
    renamed = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in known.items()
        if not name.startswith("cls.")
    }
    write_tensors(old / "model.safetensors", renamed)
    spec = QFormerConnector(**{**SIZES, "text": "instruction", "bert": str(new)})
    first, second = (started(replace(spec, bert=str(folder)))[0].state_dict() for folder in (new, old))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any("layers.2.text" in name for name in first)


def test_without_text_berts_text_is_left_out(tmp_path: Path) -> None:
    known = bert(tmp_path)
    state = started(QFormerConnector(**{**SIZES, "bert": str(tmp_path)}))[0].state_dict()
    assert not any("text" in name or name.startswith(("words", "positions")) for name in state)
    up = known["encoder.layer.2.intermediate.dense.weight"]
    assert torch.equal(state["layers.2.query_feed_forward.up.weight"], up)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    bert(tmp_path, vocab=18)
    with pytest.raises(ValueError, match=r"has 18 words, expected 21, or one less"):
        started(QFormerConnector(**{**SIZES, "text": "full", "bert": str(tmp_path)}))
    with pytest.raises(ValueError, match=r"qformer\.bert: weights 'no/such' are no folder and cannot be downl"):
        started(QFormerConnector(**{**SIZES, "bert": "no/such"}))

"""BLIP-2's second stage: the numbers of transformers, and laws of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lightning_mllm.architectures.blip2 import TINY, Blip2
from lightning_mllm.connectors.projector import LinearConnector
from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.contracts import TokenKind
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lm_loss import target_logits
from lightning_mllm.training.initialise import build_empty
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva import EvaTower
from tests.architectures.blip2s import CLOSE, built, collated, eva, same_gradients, their_inputs
from tests.architectures.blip2s import theirs as their_own
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, gradients, sample
from tests.interop.tables import keys

PAIRS = ("opt", "t5", "flan-t5")
READER: dict[str, Any] = {"reader": "package:backbones/llama", "qformer": replace(TINY["qformer"], vocab=1024)}
"""A Q-Former that reads the question."""


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    ours = built(Blip2, **eva(request.param))
    return ours, their_own(ours, tmp_path_factory.mktemp("theirs"))


BATCHES = {
    "one image": (ONE,),
    "two lengths": (ONE, OTHER),
    "two images in a row": (TWO, ONE),
    "an image and a text": (TEXT, OTHER),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", BATCHES)
def test_parity_with_transformers(pair: Any, name: str, side: str) -> None:
    ours, model = pair
    batch = collated(ours, *BATCHES[name], side=side)
    inputs = their_inputs(ours, batch, model)
    features = model.get_image_features(inputs["pixel_values"], return_dict=True)
    visual = ours.net.ln_vision(ours.net.vision(batch.images))
    assert_close(visual, features.vision_outputs.last_hidden_state, **CLOSE)
    assert_close(ours.net.qformer.encode_images(visual), features.qformer_outputs.last_hidden_state, **CLOSE)
    assert_close(ours.net.encode_images(batch)[TokenKind.IMAGE], features.pooler_output.flatten(0, 1), **CLOSE)

    seq2seq = ours.net.language.config.is_encoder_decoder
    labels = batch.targets if seq2seq else batch.labels
    assert labels is not None
    expected = model(**inputs, labels=labels)
    embeds = ours.net.merge_visual_embeddings(batch, ours.net.encode_images(batch))
    if seq2seq:
        assert_close(target_logits(ours.net.language, embeds, batch), expected.logits[labels != -100], **CLOSE)
    else:
        real = batch.segments > 0
        assert_close(ours.net.logits(batch)[real], expected.logits[real], **CLOSE)
    ours.zero_grad()
    model.zero_grad()
    output = ours(batch)
    assert_close(output.loss, expected.loss, **CLOSE)
    output.loss.backward()
    expected.loss.backward()
    same_gradients(ours, model)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "length_penalty": -1.0}], ids=["greedy", "beams"])
def test_answers_are_those_of_transformers(pair: Any, search: dict[str, Any]) -> None:
    ours, model = pair
    batch = collated(ours, ONE, OTHER, TEXT, generate=True)
    with torch.no_grad():
        mine = ours.generate(batch, Decoding(max_new_tokens=8, **search))
        written = model.generate(**their_inputs(ours, batch, model), max_new_tokens=8, do_sample=False, **search)
    skipped = 1 if ours.net.language.config.is_encoder_decoder else batch.tokens.shape[1]
    ends = set(ours.processor.stop_rule.tokens)
    for row, other in zip(mine, written[:, skipped:].tolist(), strict=True):
        assert row == other[: len(row)] and (len(row) == len(other) or other[len(row)] in ends)


def test_an_empty_prompt_teaches_the_begin_token_too() -> None:
    """Released code: with no prompt, the begin token is predicted from the last visual vector."""
    module = built(Blip2, chat="blip2_caption")
    batch = collated(module, ONE)
    first = module.processor.vectors_per_image
    assert (batch.kinds[0, :first] == TokenKind.IMAGE).all() and (batch.kinds[0, first:] == TokenKind.TEXT).all()
    begin = module.processor.tokenizer.bos_token_id
    assert batch.tokens[0, first] == begin and batch.labels[0, first] == begin
    assert module(batch).count == batch.tokens.shape[1] - first


def test_a_question_reaches_the_queries_only_where_they_read_it() -> None:
    changed = sample("Where is it?", "A cube.", 1)
    for reader, same in (({}, True), (READER, False)):
        module = built(Blip2, **reader)
        one, two = collated(module, ONE), collated(module, changed)
        assert torch.equal(*(module.net.encode_images(each)[TokenKind.IMAGE] for each in (one, two))) == same


EXPECTED = {
    "generative": {"ln_vision", "qformer", "projection"},
    "caption": {"vision", "ln_vision", "qformer", "projection"},
    "vqa": {"vision", "ln_vision", "qformer", "projection"},
}


@pytest.mark.parametrize("language", ["opt", "flan-t5"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_stage_trains_what_is_published_and_nothing_else(name: str, language: str) -> None:
    settings = eva(language, stage=StageSettings(name=name)) | (READER if name == "vqa" else {})
    module = Blip2.tiny(**settings)
    module.configure_model()
    trained = {n for n, p in module.net.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in trained} == EXPECTED[name]
    assert {n for n, part in module.net.named_children() if part.training} == EXPECTED[name]
    assert not any(each.training for each in module.net.language.modules())
    found = gradients(module, collated(module, ONE, OTHER))
    assert set(found) == trained
    # The keys' bias moves all logits of a row alike.
    assert {n for n in trained if not found[n].any() and not n.endswith("key.bias")} == set()


OPT_2_7B = CausalLM(
    config={
        "model_type": "opt",
        "hidden_size": 2560,
        "word_embed_proj_dim": 2560,
        "ffn_dim": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
    }
)


def test_published_sizes() -> None:
    module = Blip2(
        vision=EvaTower(weights=None),
        qformer=QFormerConnector(),
        language=OPT_2_7B,
        stage=StageSettings(name="generative"),
    )
    module.build(None)
    parameters = dict(module.net.named_parameters())
    counts: dict[str, int] = {}
    for name, parameter in parameters.items():
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + parameter.numel()
    # transformers counts a bias of the keys that is always zero, 1408 in each of 39 blocks.
    assert counts["vision"] + 39 * 1408 == 985_949_440
    assert counts["ln_vision"] == 2_816 and counts["qformer"] == 105_137_664 + 32 * 768
    assert counts["projection"] == 1_968_640
    assert sum(parameters[name].numel() for name in module.trained) == 107_133_696


@pytest.mark.parametrize(("width", "count"), [(4096, 3_149_824), (2048, 1_574_912), (5120, 3_937_280)])
def test_published_sizes_of_projections(width: int, count: int) -> None:
    empty = build_empty(LinearConnector(in_width=768, out_width=width))
    assert sum(p.numel() for p in empty.parameters()) == count


@pytest.mark.parametrize("language", ["opt", "flan-t5"])
def test_a_file_in_the_names_of_lavis_is_a_source(tmp_path: Path, language: str) -> None:
    """What LAVIS keeps is what it trains; of the first stage's file, heads and text are left out."""
    ours = built(Blip2, **eva(language))
    bridge = {n: t for n, t in ours.state_dict().items() if n.split(".")[0] in EXPECTED["generative"]}
    state = dict(keys(ours, "lavis").to_theirs(bridge.items()))
    state = {name.replace("llm_", "t5_" if language == "flan-t5" else "opt_"): each for name, each in state.items()}
    state |= {"temp": torch.tensor(0.07), "itm_head.bias": torch.zeros(2)}
    state |= {"Qformer.bert.embeddings.word_embeddings.weight": torch.zeros(30523, 32)}
    state |= {"Qformer.bert.encoder.layer.0.intermediate.dense.bias": torch.zeros(48)}
    torch.save({"model": state}, tmp_path / "blip2.pth")
    stage = StageSettings(name="generative", init_from={str(tmp_path / "blip2.pth"): 1.0})
    again = Blip2.tiny(**eva(language, stage=stage))
    again.configure_model()
    assert {n for n, source in again.provenance.items() if source == "stage.init_from"} == set(bridge)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in bridge.items())

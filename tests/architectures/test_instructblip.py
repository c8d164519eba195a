"""InstructBLIP: the numbers of transformers, and laws of the instruction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.contracts import Batch, Sample, TokenKind, Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lm_loss import target_logits
from lightning_mllm.nets.blip2 import texts_of_images
from lightning_mllm.training.initialise import build_empty
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva import EvaTower
from tests.architectures.blip2s import CLOSE, INSTRUCTED, LANGUAGES, built, collated, eva, same_gradients, their_inputs
from tests.architectures.blip2s import theirs as their_own
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, gradients
from tests.interop.tables import keys

PAIRS = ("llama", "flan-t5")


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    ours = built(Blip2, **INSTRUCTED | eva(request.param))
    return ours, their_own(ours, tmp_path_factory.mktemp("theirs"))


def instructed(ours: Any, batch: Batch, model: Any) -> dict[str, Tensor]:
    tokens, real = texts_of_images(batch)
    text = {"qformer_input_ids": tokens.masked_fill(~real, 0), "qformer_attention_mask": real.long()}
    return {**their_inputs(ours, batch, model), **text}


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
    inputs = instructed(ours, batch, model)
    features = model.get_image_features(
        inputs["pixel_values"],
        qformer_input_ids=inputs["qformer_input_ids"],
        qformer_attention_mask=inputs["qformer_attention_mask"],
        return_dict=True,
    )
    visual = ours.net.ln_vision(ours.net.vision(batch.images))
    text = texts_of_images(batch)
    queries = ours.processor.vectors_per_image
    assert_close(visual, features.vision_outputs.last_hidden_state, **CLOSE)
    seen = features.qformer_outputs.last_hidden_state[:, :queries]
    assert_close(ours.net.qformer.encode_instructed(visual, *text), seen, **CLOSE)
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


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_answers_are_those_of_transformers(pair: Any, search: dict[str, Any]) -> None:
    ours, model = pair
    batch = collated(ours, ONE, OTHER, TEXT, generate=True)
    with torch.no_grad():
        mine = ours.generate(batch, Decoding(max_new_tokens=8, **search))
        written = model.generate(**instructed(ours, batch, model), max_new_tokens=8, do_sample=False, **search)
    skipped = 1 if ours.net.language.config.is_encoder_decoder else batch.tokens.shape[1]
    ends = set(ours.processor.stop_rule.tokens)
    for row, other in zip(mine, written[:, skipped:].tolist(), strict=True):
        assert row == other[: len(row)] and (len(row) == len(other) or other[len(row)] in ends)


def asked(question: str, like: Sample = ONE) -> Sample:
    return replace(like, turns=(Turn(role="user", text=f"<image>\n{question}"), *like.turns[1:]))


@pytest.mark.parametrize("reads", [True, False])
def test_the_instruction_changes_what_the_queries_fetch(reads: bool) -> None:
    """The paper's ablation (sec. 3.2): without it, the queries fetch the same whatever is asked."""
    settings: dict[str, Any] = INSTRUCTED if reads else {**INSTRUCTED, "reader": None}
    module = built(Blip2, **settings)
    batches = (collated(module, asked(text)) for text in ("What is it?", "Which colour?"))
    one, other = (module.net.encode_images(batch)[TokenKind.IMAGE] for batch in batches)
    assert torch.equal(one, other) != reads
    if reads:
        assert not torch.isclose(one, other, atol=1e-4).all(-1).any()


def test_each_image_is_seen_under_its_own_rows_instruction() -> None:
    module = built(Blip2, **INSTRUCTED)
    batch = collated(module, TWO, ONE)
    together = module.net.encode_images(batch)
    first, second = (replace(TWO, images=(image,), turns=asked("Are the two alike?").turns) for image in TWO.images)
    apart = [module.net.encode_images(collated(module, each))[TokenKind.IMAGE] for each in (first, second, ONE)]
    assert_close(together[TokenKind.IMAGE], torch.cat(apart), **CLOSE)
    placed = module.net.merge_visual_embeddings(batch, together)[batch.kinds == TokenKind.IMAGE]
    assert_close(placed, torch.cat(apart), **CLOSE)


def test_every_row_begins_with_the_end_token() -> None:
    """Released code: begin, end and unknown token of Vicuna are all `</s>`."""
    module = built(Blip2, **INSTRUCTED)
    batch = collated(module, ONE)
    queries, end = module.processor.vectors_per_image, module.processor.tokenizer.eos_token_id
    assert (batch.kinds[0, :queries] == TokenKind.IMAGE).all()
    assert batch.tokens[0, queries] == end and batch.tokens[0, -1] == end and batch.labels[0, -1] == end


@pytest.mark.parametrize("language", PAIRS)
@pytest.mark.parametrize("name", ["align", "instruct"])
def test_a_stage_trains_what_is_published_and_nothing_else(name: str, language: str) -> None:
    module = Blip2.tiny(**INSTRUCTED | eva(language, stage=StageSettings(name=name)))
    module.configure_model()
    trained = {n for n, p in module.net.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in trained} == {"ln_vision", "qformer", "projection"}
    assert {n for n, part in module.net.named_children() if part.training} == {"ln_vision", "qformer", "projection"}
    found = gradients(module, collated(module, ONE, OTHER))
    assert set(found) == trained
    # The keys' bias moves all logits of a row alike.
    assert {n for n in trained if not found[n].any() and not n.endswith("key.bias")} == set()


def test_published_sizes() -> None:
    """188M trained (paper, sec. 2.6), of which the text's feed-forward in the last block comes to nothing."""
    vicuna = replace(
        LANGUAGES["llama"],
        config={**LANGUAGES["llama"].config, "hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 32001},
    )
    module = Blip2(vision=EvaTower(weights=None), qformer=QFormerConnector(), language=vicuna, reader="")
    counts = {
        n: sum(p.numel() for p in build_empty(module.components[n]).parameters()) for n in ("ln_vision", "projection")
    }
    counts["qformer"] = sum(p.numel() for p in build_empty(module.components["qformer"]).parameters())
    last = 768 * 3072 * 2 + 3072 + 3 * 768
    assert counts["qformer"] + last == 185_660_160 + 32 * 768
    assert sum(counts.values()) + last == 188_837_376


def test_a_file_in_the_names_of_lavis_is_a_source(tmp_path: Path) -> None:
    ours = built(Blip2, **INSTRUCTED | eva("llama"))
    bridge = {n: t for n, t in ours.state_dict().items() if n.split(".")[0] in ("ln_vision", "qformer", "projection")}
    state = dict(keys(ours, "lavis").to_theirs(bridge.items()))
    for part in ("intermediate.dense.bias", "output.dense.bias"):
        state[f"Qformer.bert.encoder.layer.2.{part}"] = torch.zeros(32)
    assert {"llm_proj.weight", "Qformer.bert.embeddings.word_embeddings.weight"} <= set(state)
    torch.save({"model": state}, tmp_path / "instruct_blip.pth")
    stage = StageSettings(name="instruct", init_from={str(tmp_path / "instruct_blip.pth"): 1.0})
    again = Blip2.tiny(**INSTRUCTED | eva("llama", stage=stage))
    again.configure_model()
    assert {n for n, source in again.provenance.items() if source == "stage.init_from"} == set(bridge)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in bridge.items())

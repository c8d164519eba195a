"""BLIP-2's second stage: the numbers of transformers, and laws of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.contracts import Batch, TokenKind
from lightning_mllm.evaluation.generation import Decoding
from lightning_mllm.language.answers import answer_logits
from lightning_mllm.training.stage import StageSettings
from tests.architectures.blip2s import CLOSE, OPT, TINY_T5, built, collated, eva, same_gradients, their_inputs, theirs
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of, gradients, sample

PAIRS = ("opt", "t5", "flan-t5")


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    ours = built(Blip2, **eva(request.param))
    return ours, theirs(ours, tmp_path_factory.mktemp("theirs"))


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
    visual = ours.ln_vision(ours.vision(batch.images))
    assert_close(visual, features.vision_outputs.last_hidden_state, **CLOSE)
    assert_close(ours.qformer.see(visual), features.qformer_outputs.last_hidden_state, **CLOSE)
    assert_close(ours.see(batch), features.pooler_output, **CLOSE)

    seq2seq = ours.language.config.is_encoder_decoder
    labels = batch.targets if seq2seq else batch.labels
    assert labels is not None
    expected = model(**inputs, labels=labels)
    embeds = ours.place(batch, ours.see(batch))
    if seq2seq:
        assert_close(answer_logits(ours.language, embeds, batch).logits, expected.logits[labels != -100], **CLOSE)
    else:
        real = batch.segments > 0
        assert_close(ours.logits(batch)[real], expected.logits[real], **CLOSE)
    ours.zero_grad(), model.zero_grad()
    output = ours(batch)
    assert_close(output.loss, expected.loss, **CLOSE)
    output.loss.backward(), expected.loss.backward()
    same_gradients(ours, model)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "length_penalty": -1.0}], ids=["greedy", "beams"])
def test_answers_are_those_of_transformers(pair: Any, search: dict[str, Any]) -> None:
    ours, model = pair
    batch = collated(ours, ONE, OTHER, TEXT, generate=True)
    with torch.no_grad():
        mine = ours.generate(batch, Decoding(max_new_tokens=8, **search))
        written = model.generate(**their_inputs(ours, batch, model), max_new_tokens=8, do_sample=False, **search)
    skipped = 1 if ours.language.config.is_encoder_decoder else batch.tokens.shape[1]
    ends = set(ours.processor.ends)
    for row, other in zip(mine, written[:, skipped:].tolist(), strict=True):
        assert row == other[: len(row)] and (len(row) == len(other) or other[len(row)] in ends)

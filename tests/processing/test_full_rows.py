"""The longest rows that a processor makes."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.language_model import LanguageModelPretraining
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.contracts import IGNORE
from lightning_mllm.language.seq2seq import TINY_T5
from lightning_mllm.processing.full_rows import full_batch
from lightning_mllm.processing.limits import TextLimits
from tests.architectures.blip2s import INSTRUCTED

LIMITS = TextLimits(prompt=10, answer=7)


@pytest.mark.parametrize(
    ("net", "length", "learned", "images"),
    [
        (lambda: LLaVA.tiny(max_length=64), 64, 64 - 1 - 4, 3),
        (lambda: Sphinx.tiny(max_length=64), 64, None, 3),
        (lambda: Blip2.tiny(max_length=64, text_limits=TextLimits(answer=7)), 64, 7, 3),
        (lambda: Blip2.tiny(**INSTRUCTED | {"text_limits": LIMITS}), 4 + 10 + 7, 7, 3),
        (lambda: LanguageModelPretraining.tiny(max_length=64), 64, 63, 0),
    ],
)
def test_rows_are_as_long_as_they_may_be(net: Any, length: int, learned: int | None, images: int) -> None:
    processor = net().processor
    batch = full_batch(processor, 3)
    assert batch.tokens.shape == (3, length)
    assert learned is None or int((batch.labels != IGNORE).sum()) == 3 * learned
    assert batch.num_images == images * processor.image.num_views
    assert batch.image_ids is not None and len(set(batch.image_ids.tolist())) == images


def test_an_encoder_reads_the_prompt_and_a_decoder_writes_the_answer() -> None:
    processor = Blip2.tiny(language=TINY_T5, chat="blip2_t5", text_limits=LIMITS, reader="", reader_length=9).processor
    batch = full_batch(processor, 2)
    assert batch.tokens.shape == (2, len(processor.prefix) + 4 + 10)
    assert batch.targets is not None and batch.targets.shape == (2, 7)
    assert batch.query_text is not None and batch.query_text.shape == (2, 9)


def test_images_may_be_more_than_a_row_holds() -> None:
    with pytest.raises(ValueError, match=r"max_length: found 64, expected more than the 65 tokens of 16 images"):
        full_batch(LLaVA.tiny(max_length=64).processor, 1, images=16)

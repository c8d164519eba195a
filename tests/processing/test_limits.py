"""What a row may be: no image is cut, and something is learned in every one; both are counted (MLLM_FULL=1: 10,000)."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from data_modules.bad_samples import BadLimits, told
from data_modules.mixture_sampler import SampleLocation
from data_modules.training_samples import TrainingSamples
from lightning_mllm.contracts import IGNORE, OverlongError, Sample, TokenKind
from lightning_mllm.processing.limits import TextLimits
from tests.data_modules.files import Numbers
from tests.processing.test_processor import BLUE, RED, processor, turns
from tests.processing.tokenizer import WORDS

SAMPLES = 10_000 if os.environ.get("MLLM_FULL") == "1" else 150
SLOTS, LENGTH = 3, 250


class Said(Numbers):
    """Conversations of any length: long and empty texts, answers behind the end of a row, images anywhere."""

    bad_records = "skip"

    def has_image(self, index: int) -> bool:
        return index % 4 != 0

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        rng = random.Random(index)
        images = (RED, BLUE)[: rng.randint(1, 2)] if self.has_image(index) else ()
        texts = [text for _ in range(rng.choice([1, 1, 2, 3])) for text in (said(rng), said(rng))]
        if index % 7 == 0:
            texts[1] = rng.choice(["", " ", "\n"])
        for _ in images:
            at = rng.randrange(0, len(texts), 2)
            words = texts[at].split(" ")
            words.insert(rng.randint(0, len(words)), "<image>")
            texts[at] = " ".join(words)
        return Sample(id=f"n{index}", turns=turns(*texts), images=images)


def said(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.choice([1, 3, 8, 20, 80])))


@pytest.mark.fault
@pytest.mark.parametrize("overlong", ["mask", "drop"])
@pytest.mark.parametrize("limits", [TextLimits(), TextLimits(prompt=20, answer=10)], ids=["no limits", "limits"])
def test_no_row_without_a_learned_token_and_no_image_cut(
    overlong: Any, limits: TextLimits, fault_row: Callable[[str, str, str], None]
) -> None:
    used = processor(vectors=SLOTS, max_length=LENGTH)
    used.text_limits = limits
    source = Said(SAMPLES, "n")
    samples = TrainingSamples({"n": source}, used, 1, limits=BadLimits(in_a_row=SAMPLES), overlong=overlong)
    seen = Counter[str]()
    for index in range(SAMPLES):
        row: Any = samples[SampleLocation(0, "n", index)]
        assert (row.labels[1:] != IGNORE).any() and len(row.tokens) <= LENGTH
        slots = int((row.kinds == TokenKind.IMAGE).sum())
        assert slots == SLOTS * len(row.visual_counts) == SLOTS * len(row.images) and bool(slots) is (index % 4 != 0)
        seen.update({told(note)[0] for note in row.notes})
    assert "nothing learned" not in seen and (seen["cut"] > 20) is (limits.answer is not None)
    chosen, other = ("overlong", "dropped") if overlong == "mask" else ("dropped", "overlong")
    assert seen["replaced"] > 0 and not seen[other]
    assert limits.answer is not None or seen[chosen] > 20
    told_so = f"rows without a learned token or with a cut image; {overlong}, answer {limits.answer}"
    fault_row("T20", f"0 of {SAMPLES}", told_so)


def test_what_cannot_be_cut_is_said_by_its_own_error() -> None:
    used = processor(vectors=SLOTS, max_length=12)
    for texts, images, rule in (
        (("what " * 40, "dog"), (), "expected at most 12: cutting the end would leave no answer"),
        (("what " * 40 + "<image>", "dog"), (RED,), "expected at most 12: cutting the end would cut an image"),
    ):
        with pytest.raises(OverlongError, match=rf"^sample 's': found \d+ tokens, {rule}$"):
            used.encode(Sample(id="s", turns=turns(*texts), images=images))
    with pytest.raises(OverlongError, match=r"found a prompt of \d+ tokens, expected at most 12$"):
        used.encode(Sample(id="s", turns=turns("what " * 40)), generate=True)

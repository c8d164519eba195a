from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lightning_mllm.evaluation.metrics.words import grams, words
from tests.evaluation.metrics.published import published

PUBLISHED = published("words")
COCO = Path(__file__).resolve().parents[3] / "../shared/data/coco_mini/annotations"


@pytest.mark.parametrize("case", PUBLISHED["lines"], ids=lambda case: case["line"][:20])
def test_same_words_as_the_published_tokeniser(case: dict) -> None:
    assert words(case["line"]) == case["words"]


@pytest.mark.parametrize("key", ["answer", "reference"])
def test_same_words_on_made_up_captions(key: str) -> None:
    for item in published("captions")["items"]:
        if key == "answer":
            assert words(item["answer"]) == item["words"]
        else:
            assert [words(text) for text in item["references"]] == item["reference_words"]


@pytest.mark.skipif(not COCO.is_dir(), reason="the COCO captions are not beside the project")
def test_same_words_on_coco_captions() -> None:
    captions = [
        annotation["caption"].replace("\n", " ")
        for split in ("train", "val")
        for annotation in json.loads((COCO / f"captions_{split}2017.json").read_text())["annotations"]
    ]
    assert len(captions) == PUBLISHED["coco_mini"]["captions"]
    lines = "\n".join(" ".join(words(caption)) for caption in captions)
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED["coco_mini"]["sha256"]


def test_grams_count_every_run() -> None:
    assert grams(["a", "b", "a", "b"], 2) == {("a",): 2, ("b",): 2, ("a", "b"): 2, ("b", "a"): 1}
    assert not grams([], 4)

"""What the record check cannot know: images that are damaged, found when a sample is encoded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.evaluation import EvaluationSamples, EvaluationSet
from data_modules.loader import Collate, ResumableLoader, Share, TrainingSamples
from data_modules.order import Order
from data_modules.sources import CocoCaptions, LlavaConversations
from data_modules.sources.source import Source
from tests.data_modules.files import write
from tests.data_modules.sources.test_conversations import turns
from tests.processing.test_processor import processor

RULE = r"record 1: sample '1': .*1\.jpg: image file is truncated \(\d+ bytes not processed\)"


def photos(folder: Path, count: int = 4) -> str:
    """JPEGs 0.jpg, 1.jpg, ..., of which the second one is cut off."""
    noise = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"{number}.jpg"
        Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)
        if number == 1:
            file.write_bytes(file.read_bytes()[:1500])
    return str(folder)


def source(folder: Path, **settings: Any) -> Source:
    records = [
        {"id": k, "image": f"{k}.jpg", "conversations": turns("<image>\nwhat is it?", "a dog")} for k in range(4)
    ]
    made = LlavaConversations(write(folder / "a.json", records), photos(folder), **settings)
    made.load()
    return made


def batches(given: Source) -> list[Any]:
    used = processor()
    loader = ResumableLoader(
        TrainingSamples({"mine": given}, used, seed=1),
        [(Share("stage.global_batch", 2, 2), Order({"mine": 4}, seed=1, batch=2))],
        collate_fn=Collate(used, "right"),
        steps=2,
    )
    return list(loader)


def test_a_truncated_jpeg_is_named_or_skipped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/a.json: {RULE}"):
        batches(source(tmp_path))
    found = batches(source(tmp_path, bad_records="skip"))
    ids = sorted(id for batch in found for id in batch.ids)
    assert ids == ["0", "2", "2", "3"]
    ((note,),) = [row for batch in found for row in batch.notes if row]
    assert re.fullmatch(rf"replaced: .*a\.json: {RULE}", note)


def test_a_truncated_jpeg_of_an_evaluation_set(tmp_path: Path) -> None:
    refused = EvaluationSamples(EvaluationSet(source=source(tmp_path), task="vqa"), processor(), blind=False)
    with pytest.raises(ValueError, match=RULE):
        refused[1]
    chosen = EvaluationSet(source=source(tmp_path, bad_records="skip"), task="vqa")
    samples = EvaluationSamples(chosen, processor(), blind=False)
    rows = [samples[k] for k in range(4)]
    assert [(row.id, row.index) for row in rows] == [("0", 0), ("2", 2), ("2", 2), ("3", 3)]
    assert re.fullmatch(rf"left out: .*a\.json: {RULE}", rows[1].notes[0]) and not rows[2].notes


def test_captions_know_their_record(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in range(4)]
    captions = [{"id": 9 - k, "image_id": k // 2, "caption": f"a dog {k}"} for k in range(4)]
    file = write(tmp_path / "c.json", {"images": images, "annotations": captions})
    made = CocoCaptions(file, photos(tmp_path))
    made.load()
    samples = TrainingSamples({"c": made}, processor(), seed=1)
    assert samples.sources["c"].where(3) == f"{file}: images[1]"
    with pytest.raises(ValueError, match=r"c\.json: images\[1\]: sample '6': .*truncated"):
        samples[Order({"c": 4}, seed=1).at(0)._replace(index=3)]


def test_half_a_character_of_an_own_source() -> None:
    from lightning_mllm.contracts import Sample, Turn

    used, sample = processor(), Sample(id="q", turns=(Turn(role="user", text="a \ud83d?"),))
    with pytest.raises(ValueError, match=r"^sample 'q': found half of a character \('.ud83d'\), expected whole ones$"):
        used.encode(sample, generate=True)
    assert torch.is_tensor(used.encode(Sample(id="q", turns=(Turn(role="user", text="a ?"),)), generate=True).tokens)

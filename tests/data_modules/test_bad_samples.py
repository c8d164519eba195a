"""What the record check cannot know: images that are damaged, found when a sample is encoded."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.bad_samples import BadLimits, BadSampleList, told
from data_modules.evaluation import EvaluationSamples, EvaluationSet
from data_modules.geometry import check_frames
from data_modules.loader import Collate, ResumableLoader, Share
from data_modules.mixture_sampler import MixtureSampler
from data_modules.module import InstructionDataModule
from data_modules.sources import CocoCaptions, LlavaConversations, RefCoco
from data_modules.sources.source import Source
from data_modules.training_samples import TrainingSamples
from lightning_mllm.contracts import Sample, Turn
from lightning_mllm.processing.images import ImagePolicy
from tests.data_modules.files import write
from tests.data_modules.sources.test_conversations import turns
from tests.processing.test_processor import processor
from tests.weights.disks import fill, small_disk

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
        [(Share("stage.global_batch", 2, 2), MixtureSampler({"mine": 4}, seed=1, batch=2))],
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
    assert re.fullmatch(rf"replaced: .*a\.json: {RULE}", ": ".join(told(note)))


def test_a_truncated_jpeg_of_an_evaluation_set(tmp_path: Path) -> None:
    refused = EvaluationSamples(EvaluationSet(source=source(tmp_path), task="vqa"), processor(), blind=False)
    with pytest.raises(ValueError, match=RULE):
        refused[1]
    chosen = EvaluationSet(source=source(tmp_path, bad_records="skip"), task="vqa")
    samples = EvaluationSamples(chosen, processor(), blind=False)
    rows: list[Any] = [samples[k] for k in range(4)]
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
        samples[MixtureSampler({"c": 4}, seed=1).at(0)._replace(index=3)]


def test_half_a_character_of_an_own_source() -> None:
    used, sample = processor(), Sample(id="q", turns=(Turn(role="user", text="a \ud83d?"),))
    with pytest.raises(ValueError, match=r"^sample 'q': found half of a character \('.ud83d'\), expected whole ones$"):
        used.encode(sample, generate=True)
    assert torch.is_tensor(used.encode(Sample(id="q", turns=(Turn(role="user", text="a ?"),)), generate=True).tokens)


def turned(folder: Path) -> tuple[str, str]:
    """A photo of 60 x 40 stored pixels that is to be shown upright, 40 x 60, and COCO's file about 60 x 40."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (9, 9, 9)).save(folder / "0.jpg", exif=exif)
    record = {"id": 0, "file_name": "0.jpg", "width": 60, "height": 40, "caption": "it"}
    things = [{"id": 5, "image_id": 0, "bbox": [1, 2, 30, 20]}]
    return write(folder / "refs.json", {"images": [record], "annotations": things}), str(folder)


def test_an_image_of_another_size_than_its_boxes_say(tmp_path: Path) -> None:
    made = RefCoco(*turned(tmp_path), dialect="cogvlm")
    made.load()
    samples: Any = TrainingSamples({"boxes": made}, processor(), seed=1)
    place = MixtureSampler({"boxes": 1}, seed=1).at(0)
    with pytest.raises(
        ValueError, match=r"refs\.json: images\[0\]: sample '0': .*0\.jpg: found 40 x 60 pixels \(as the"
    ) as e:
        samples[place]
    assert "expected 60 x 40 as the annotations say" in str(e.value)
    samples.processor.image = replace(samples.processor.image, decode="stored")
    assert samples[place].images.shape == (1, 3, 8, 8)
    Image.new("RGB", (61, 40)).save(tmp_path / "0.jpg")
    with pytest.raises(ValueError, match="found 61 x 40 pixels, expected 60 x 40"):
        samples[place]


FRAMES = [
    ("image", {"fit": "squash"}, ""),
    ("square", {"fit": "pad"}, ""),
    (
        "image",
        {"fit": "pad"},
        "found boxes told as shares of the image, expected frame: square, which is what image.fit: pad",
    ),
    ("square", {"fit": "squash"}, "shares of the square, expected frame: image, which is what image.fit: squash shows"),
    ("image", {"fit": "crop"}, "of which image.fit: crop shows a part, expected fit: pad or squash"),
    ("image", {"fit": "squash", "random_flip": 0.5}, "training shows random parts or mirror images"),
    ("square", {"fit": "pad", "random_area": (0.9, 1.0)}, "training shows random parts or mirror images"),
]


@pytest.mark.parametrize(("frame", "policy", "rule"), FRAMES)
def test_boxes_are_told_in_what_is_shown(tmp_path: Path, frame: Any, policy: dict[str, Any], rule: str) -> None:
    used = processor()
    used.image = ImagePolicy(size=8, **policy)
    annotations, images = turned(tmp_path)
    boxes = RefCoco(annotations, images, dialect="cogvlm", frame=frame)
    words = LlavaConversations(annotations, images, frame=frame)
    for given in (boxes, words):
        for part in ("train", "val", "test"):
            sets: Any = {"refs": given if part == "train" else EvaluationSet(source=given, task="grounding")}
            module = InstructionDataModule(**{part: sets}, processor=used)
            refused = rule and (part == "train" or "random" not in rule)
            # Refused before the sources are read.
            with pytest.raises(ValueError, match=rf"^data\.{part}\.refs: .*{rule}") if refused else nullcontext():
                check_frames(used, module.train, {"val": module.val, "test": module.test})
            if refused:
                with pytest.raises(ValueError, match=rf"^data\.{part}\.refs: "):
                    module.setup("fit")


@pytest.mark.fault
def test_a_list_on_a_full_disk_names_the_file_and_the_bytes(
    tmp_path: Path, fault_row: Callable[[str, str, str], None]
) -> None:
    with small_disk(tmp_path / "small", 65536) as mounted:
        if not mounted:
            pytest.skip("nothing may be mounted here")
        path = tmp_path / "small/bad_samples.jsonl"
        kept = BadSampleList(path, BadLimits(share=1.0), total=10**6)
        kept.add([{"source": "a", "index": 0, "id": "", "where": "a:1", "rule": "x" * 50}])
        before, filler = path.read_bytes(), fill(tmp_path / "small", 0)
        lines = [{"source": "a", "index": n, "id": "", "where": f"a:{n}", "rule": "x" * 50} for n in range(1, 99)]
        with pytest.raises(OSError, match=r"cannot write \d+ bytes, 0 are free \(No space left on device\)"):
            kept.add(lines)
        filler.unlink()
        again = BadSampleList(path, BadLimits(share=1.0), total=10**6)
        again.add(lines)
        found = path.read_bytes()
    assert found.startswith(before) and len(found.splitlines()) == 99
    fault_row("T5", "1 of 1", "a list of bad samples on a full disk: named, and whole afterwards")

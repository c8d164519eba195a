"""Questions about videos that InstructBLIP (arXiv 2305.06500) tests on alone: MSVD-QA, MSRVTT-QA and iVQA.

A video is a folder of frames, taken from it at any even rate beforehand and numbered in their order:

    frames/VIDEO/NUMBER.jpg        e.g. ffmpeg -i VIDEO.mp4 -vf fps=2 frames/VIDEO/%04d.jpg

Of these some are shown, as several images (sec. 2.4: four frames, spread uniformly); `spread` says which.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch

from data_modules.sources.files import BadRecords
from data_modules.sources.questions import Question, QuestionSource, most_common
from data_modules.sources.records import MAX_CAPTION, RecordError, field, not_found, read_bytes, read_json, text_of
from data_modules.sources.source import Published
from lightning_mllm.contracts import Sample

PEOPLE = 5
"""So many answered each question of iVQA (arXiv 2012.00451, sec. 5)."""


Spread = Literal["centres", "starts"]
"""Which frame of each of some equal segments is shown: the one in its middle (ours), or its first one, as LAVIS does
(released lavis/datasets/data_utils.py: load_video, sampling "uniform")."""


def spread(frames: Sequence[str], count: int, which: Spread = "centres") -> list[str]:
    """`count` of the frames: one of each of as many equal segments."""
    half = which == "centres"
    return [frames[(2 * k + half) * len(frames) // (2 * count)] for k in range(count)]


class VideoQuestions(QuestionSource):
    """Questions about videos; the images of a sample are frames of one.

    Args:
        annotations: the file.
        images: the folder of the videos' folders of frames.
        frames: how many of a video's frames are shown.
        spread: which ones: 'centres' or 'starts' of equal segments (see Spread).
        prompt, bad_records: as in QuestionSource; `<image>` stands for all frames.
    """

    task: str = "exact"

    def __init__(
        self,
        annotations: str,
        images: str,
        frames: int = 4,
        spread: Spread = "centres",
        prompt: str = "vqa/short_answer",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, bad_records=bad_records)
        if frames < 1:
            raise ValueError(f"frames: found {frames}, expected at least 1")
        if spread not in get_args(Spread):
            raise ValueError(f"spread: found {spread!r}, expected 'centres' or 'starts'")
        self.frames = frames
        self.spread: Spread = spread
        self._shown: dict[str, list[str]] = {}

    def _frames(self, video: str) -> list[str]:
        """Names of the frames that are shown of a video; RecordError if it has too few."""
        if video not in self._shown:
            folder = Path(self.images, video)
            if not os.path.isdir(folder):
                raise RecordError(f"video {folder} not found") if os.path.isdir(self.images) else not_found(self.images)
            names = [Path(name) for name in os.listdir(folder)]
            numbered = sorted((int(name.stem), name.name) for name in names if _is_frame(name))
            if len(numbered) < self.frames:
                raise RecordError(
                    f"video {folder} has {len(numbered)} frames NUMBER.jpg, expected at least {self.frames}"
                )
            self._shown[video] = spread([f"{video}/{name}" for _, name in numbered], self.frames, self.spread)
        return self._shown[video]


def _is_frame(name: Path) -> bool:
    return name.suffix == ".jpg" and name.stem.isdecimal()


class MsvdQa(VideoQuestions):
    """MSVD-QA's SPLIT_qa.json: [{id, video_id, question, answer}].

    Args:
        annotations: the file.
        images: the folder of the videos' folders of frames; video 1 is vid1 (see video.py).
        vocabulary: a file {answer: number}, such as LAVIS' train_ans2label.json, whose answers are ranked, as
            InstructBLIP does (sec. 2.4); what is not in it cannot be answered right. Empty for answers in writing.
        frames, spread, prompt, bad_records: as in VideoQuestions.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="MSVD-QA",
            paper="ACM MM 2017",
            family="vqa",
            tasks=("exact",),
            held_in=False,
            files=("test_qa.json",),
        ),
    )
    key: ClassVar[str] = "id"
    video: ClassVar[str] = "vid"
    """What the name of a video has in front of its number."""

    def __init__(
        self,
        annotations: str,
        images: str,
        vocabulary: str = "",
        frames: int = 4,
        spread: Spread = "centres",
        prompt: str = "vqa/short_answer",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, frames, spread, prompt, bad_records)
        self.vocabulary = str(vocabulary)
        self._candidates: tuple[str, ...] = ()

    def load(self) -> None:
        if self.vocabulary and not self._candidates:
            content = read_json(self.vocabulary)
            if not isinstance(content, dict) or len(content) < 2:
                raise ValueError(f"{self.vocabulary}: expected an object of at least 2 answers, each with its number")
            self._candidates = tuple(content)
        super().load()

    def _questions(self, record: object) -> Iterator[Question]:
        id, video = field(record, "id", int), field(record, "video_id", int)
        question, answer = text_of(record, "question", MAX_CAPTION), text_of(record, "answer", MAX_CAPTION)
        yield Question(str(id), self._frames(f"{self.video}{video}"), question, answer)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        # The vocabulary is the same for all: kept once, not with each record.
        return replace(super().sample(index, generator), candidates=self._candidates)


class MsrvttQa(MsvdQa):
    """MSRVTT-QA's SPLIT_qa.json: as MSVD-QA's, with a category_id.

    Args:
        annotations: the file.
        images: the folder of the videos' folders of frames; video 7010 is video7010 (see video.py).
        vocabulary, frames, spread, prompt, bad_records: as in MsvdQa.
    """

    published: ClassVar[tuple[Published, ...]] = (replace(MsvdQa.published[0], title="MSRVTT-QA"),)
    video: ClassVar[str] = "video"


class IVqa(VideoQuestions):
    """iVQA's ivqa.csv or SPLIT.csv: video_id, start, end, question and the answers of five people, answer1 to answer5.

    Args:
        annotations: the file.
        images: the folder of the clips' folders of frames; a clip is called VIDEO_ID_START_END, in whole seconds, as
            the published clips are (see video.py).
        frames, spread, prompt, bad_records: as in VideoQuestions.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="iVQA",
            paper="2012.00451",
            family="vqa",
            tasks=("ivqa",),
            held_in=False,
            files=("test.csv",),
        ),
    )
    task: str = "ivqa"
    key: ClassVar[str] = "video_id"

    def _records(self) -> Iterator[tuple[str, object]]:
        try:
            text = read_bytes(self.annotations).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.annotations}: found a byte that is not UTF-8 at offset {error.start}") from None
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            yield from ((f":{rows.line_num}", row) for row in rows)
        except csv.Error as error:
            line = rows.reader.line_num
            raise ValueError(f"{self.annotations}:{line}: expected comma-separated values ({error})") from None

    def _questions(self, record: object) -> Iterator[Question]:
        question = text_of(record, "question", MAX_CAPTION)
        given = [field(record, f"answer{k}", str) for k in range(1, PEOPLE + 1)]
        if isinstance(record, dict) and None in record:
            raise RecordError(f"found {len(record) - 1 + len(record[None])} values, expected {len(record) - 1}")
        clip = "_".join(
            [text_of(record, "video_id", MAX_CAPTION), *(_seconds(record, key) for key in ("start", "end"))]
        )
        yield Question(clip, self._frames(clip), question, most_common(given), given)


def _seconds(record: object, key: str) -> str:
    text = field(record, key, str)
    try:
        return str(int(float(text)))
    except (ValueError, OverflowError):
        raise RecordError(f"'{key}' is '{text}', expected seconds") from None

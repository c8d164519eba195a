"""Samples that are answered rather than learned: fixed order, the same number of batches on every rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch.utils.data import Dataset

from data_modules.loader import TRIES, Refusal, contained, named
from data_modules.mixture_sampler import seeded
from data_modules.processor import SampleProcessor
from data_modules.sources.blind import images_of_another
from data_modules.sources.source import Source
from lightning_mllm.contracts import IMAGE_MARK, Encoded, Evaluation, ImageRef, Sample

Turns = Literal["one", "last", "each"]

STRETCH = 32
"""Batches within which samples are answered in another order than that of their set, which is read from front to back.
"""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """What is answered and scored.

    Args:
        source: where the samples come from.
        task: which scores are computed, and which decoding settings are used; of "loss" nothing is answered, it is the
            loss of the samples' own answers (`val/loss`), as in training.
        part: names a part of the test data ('novel'); empty for the main one.
        blind: whether a test also answers the set with the images exchanged, as a model that cannot see would; plain
            text (the task 'perplexity') has none.
        limit: answer only so many samples, a fixed random choice.
        turns: what is asked of a conversation of several questions: "one" refuses it, for a score of one answer says
            nothing of the others; "last" asks the last question behind the rest as it stands in the data; "each" asks
            every question, behind the answers that stand in the data, and what stands behind it is its reference.
    """

    source: Source
    task: str
    part: str = ""
    blind: bool = True
    limit: int | None = None
    turns: Turns = "one"

    def __post_init__(self) -> None:
        if self.turns not in get_args(Turns):
            raise ValueError(f"turns: found {self.turns!r}, expected {', '.join(get_args(Turns))}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: found {self.limit}, expected at least 1")

    def evaluations(self, *, twins: bool) -> list[Evaluation]:
        """The set as training reads it, and where `twins` its blind twin."""
        kinds = (False, True) if twins and self.blind and self.task != "perplexity" else (False,)
        return [Evaluation(task=self.task, part=self.part, blind=blind) for blind in kinds]

    def chosen(self) -> list[int]:
        """Indices of the source in the order in which they are answered; the same in every run."""
        total = len(self.source)
        if self.limit is None or self.limit >= total:
            return list(range(total))
        return sorted(torch.randperm(total, generator=seeded("limit"))[: self.limit].tolist())

    def questions(self) -> list[tuple[int, int | None]]:
        """Index in the source and number of every question, counted from 0; None where its sample has no other."""
        if self.turns != "each" or self.task == "loss":
            return [(index, None) for index in self.chosen()]
        return [(index, n) for index in self.chosen() for n in range(max(1, len(_asked(self._sample(index)))))]

    def sample(self, index: int, question: int | None) -> Sample:
        """One of `questions`, with the task of the set.

        Raises:
            ValueError: several questions in a conversation, of which the set does not say which are asked.
        """
        sample = self._sample(index)
        if self.task == "loss":
            # That of training, of all answers, with the template of the sample's own task.
            return sample
        sample = replace(sample, task=self.task)
        asked = _asked(sample)
        if self.turns == "one" and len(asked) > 1:
            raise ValueError(
                f"sample {sample.id}: found a conversation of {len(asked)} questions, expected one for the task"
                f" '{self.task}'; set turns: each to ask and score every one of them, or turns: last"
            )
        return sample if question is None or not asked else _one(sample, question, asked[question])

    def _sample(self, index: int) -> Sample:
        return self.source.sample(index, seeded("evaluation", index))


def _asked(sample: Sample) -> list[int]:
    return [position for position, turn in enumerate(sample.turns) if turn.role == "user"]


def _one(sample: Sample, number: int, position: int) -> Sample:
    """A conversation up to the answer to the question at turn `position`; all of its questions are of one cluster."""
    turns = sample.turns[: position + 2]
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns if turn.role == "user" and not turn.literal)
    answered = turns[-1].role == "assistant"
    return replace(
        sample,
        id=f"{sample.id} question {number + 1}",
        turns=turns,
        images=sample.images[:marks],
        references=(turns[-1].text,) if answered else sample.references,
        cluster=sample.cluster or (*sorted({image.name for image in sample.images}), f"conversation {sample.id}"),
    )


class EvaluationSamples(Dataset):
    """Rank `rank`'s share of an evaluation set, encoded for generation, or where its task is "loss" as for training.

    Every rank has equally many, so the last ones may repeat samples of the beginning; `Sample.index` tells them. A
    sample's `cluster` is its own pictures, also where a blind twin shows others. Where the source says
    `bad_records: skip`, one that cannot be encoded is left out: another one of the set is given again instead.

    Args:
        chosen: the set; its source is loaded.
        blind: give each sample the images of another one that shows different files.
    """

    def __init__(
        self, chosen: EvaluationSet, processor: SampleProcessor, *, blind: bool, rank: int = 0, world: int = 1
    ) -> None:
        self.chosen, self.source, self.processor, self.blind = chosen, chosen.source, processor, blind
        self.questions = chosen.questions()
        self.indices = [index for index, _ in self.questions]
        self.positions = [(rank + k * world) % len(self.indices) for k in range(-(-len(self.indices) // world))]

    def __len__(self) -> int:
        return len(self.positions)

    def order(self, batch: int) -> list[int]:
        """In which order the samples are best answered, `batch` at once: within STRETCH batches, those that show one
        image together, the longest first, for rows of one length need no padding."""
        total, size = len(self), STRETCH * batch
        return [
            row for start in range(0, total, size) for row in self._together(range(start, min(start + size, total)))
        ]

    def _together(self, rows: range) -> list[int]:
        lengths = {row: self.source.length(self.indices[self.positions[row]]) for row in rows}
        groups: dict[tuple[str, int], list[int]] = {}
        for row in sorted(rows, key=lambda row: -lengths[row]):
            groups.setdefault(self._shown(row), []).append(row)
        # Their order is that of their longest ones.
        return [row for group in groups.values() for row in group]

    def _shown(self, row: int) -> tuple[str, int]:
        """What samples that show the same image have in common, as far as is known without reading them."""
        total = len(self.indices)
        position = (self.positions[row] + (total // 2 if self.blind else 0)) % total
        key = self.source.image_key(self.indices[position])
        return ("row", row) if key is None else ("image", key)

    def __getitem__(self, row: int) -> Encoded | Refusal:
        position = self.positions[row]
        index = self.indices[position]
        return contained(
            lambda: self._encoded(position), lambda: self.source.where(index) or f"sample {index} of an evaluation set"
        )

    def _encoded(self, position: int) -> Encoded:
        bad: list[str] = []
        for other in ((position + step) % len(self.indices) for step in range(min(TRIES, len(self.indices)))):
            try:
                encoded = self.processor.encode(self.sample(other), generate=self.chosen.task != "loss")
            except ValueError as error:
                where = self.source.where(self.indices[other])
                if self.source.bad_records == "refuse":
                    raise named(where, error) from error
                bad.append(str(named(where, error)))
            else:
                return (
                    replace(encoded, notes=(*encoded.notes, *(f"left out: {each}" for each in bad))) if bad else encoded
                )
        raise ValueError(f"found {len(bad)} bad samples of an evaluation set in a row, the first: {bad[0]}")

    def sample(self, position: int) -> Sample:
        """Sample `position` of the chosen ones, its images exchanged where blind."""
        sample = self._sample(position)
        cluster = sample.cluster or tuple(sorted({image.name for image in sample.images}))
        sample = replace(sample, index=position, cluster=cluster)
        return replace(sample, images=self._other_images(position, sample)) if self.blind and sample.images else sample

    def _sample(self, position: int) -> Sample:
        return self.chosen.sample(*self.questions[position])

    def _other_images(self, position: int, sample: Sample) -> tuple[ImageRef, ...]:
        """Those of the next sample, from half the set away on, that has as many images and different ones."""
        images = images_of_another(
            position,
            sample.images,
            len(self.indices),
            lambda other: self._sample(other).images if self.source.has_image(self.indices[other]) else (),
        )
        if images is None:
            raise ValueError(
                f"sample {sample.id}: found no other sample with {len(sample.images)} different images to exchange,"
                f" expected one of the {len(self.indices)}; set blind: false"
            )
        return images

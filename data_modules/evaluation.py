"""Samples that are answered rather than learned: fixed order, the same number of batches on every rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from data_modules.loader import TRIES, contained, named
from data_modules.order import seeded
from data_modules.sources.source import Source
from lightning_mllm.contracts import Evaluation, Sample


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """What is answered and scored.

    Args:
        source: where the samples come from.
        task: which scores are computed, and which decoding settings are used.
        part: names a part of the test data ('novel'); empty for the main one.
        blind: whether a test also answers the set with the images exchanged, as a model that cannot see would; plain
            text (the task 'perplexity') has none.
        limit: answer only so many samples, a fixed random choice.
    """

    source: Source
    task: str
    part: str = ""
    blind: bool = True
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: found {self.limit}, expected at least 1")

    def evaluations(self, *, twins: bool) -> list[Evaluation]:
        """The set as the training side sees it, and where `twins` its blind twin."""
        kinds = (False, True) if twins and self.blind and self.task != "perplexity" else (False,)
        return [Evaluation(task=self.task, part=self.part, blind=blind) for blind in kinds]

    def chosen(self) -> list[int]:
        """Indices of the source in the order in which they are answered; the same in every run."""
        total = len(self.source)
        if self.limit is None or self.limit >= total:
            return list(range(total))
        return sorted(torch.randperm(total, generator=seeded("limit"))[: self.limit].tolist())


class EvaluationSamples(Dataset):
    """Rank `rank`'s share of an evaluation set, encoded for generation.

    Every rank has equally many, so the last ones may repeat samples of the beginning; `Sample.index` tells them. A
    sample's `cluster` is its own pictures, also where a blind twin shows others. Where the source says
    `bad_records: skip`, one that cannot be encoded is left out: another one of the set is given in its place again.

    Args:
        chosen: the set; its source is loaded.
        blind: give each sample the images of another one that shows different files.
    """

    def __init__(self, chosen: EvaluationSet, processor: Any, *, blind: bool, rank: int = 0, world: int = 1) -> None:
        self.source, self.task, self.processor, self.blind = chosen.source, chosen.task, processor, blind
        self.indices = chosen.chosen()
        self.places = [(rank + k * world) % len(self.indices) for k in range(-(-len(self.indices) // world))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> Any:
        place = self.places[row]
        return contained(lambda: self._encoded(place), f"sample {self.indices[place]} of an evaluation set")

    def _encoded(self, place: int) -> Any:
        bad: list[str] = []
        for other in ((place + step) % len(self.indices) for step in range(min(TRIES, len(self.indices)))):
            try:
                encoded = self.processor.encode(self.sample(other), generate=True)
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

    def sample(self, place: int) -> Sample:
        """Sample `place` of the chosen ones, its images exchanged where blind."""
        sample = self._sample(place)
        cluster = sample.cluster or tuple(sorted({image.name for image in sample.images}))
        sample = replace(sample, task=self.task, index=place, cluster=cluster)
        return replace(sample, images=self._other_images(place, sample)) if self.blind and sample.images else sample

    def _sample(self, place: int) -> Sample:
        index = self.indices[place]
        return self.source.sample(index, seeded("evaluation", index))

    def _other_images(self, place: int, sample: Sample) -> Any:
        """Those of the next sample, from half the set away on, that has as many images and different ones."""
        own, total = [image.name for image in sample.images], len(self.indices)
        for step in range(total):
            other = (place + total // 2 + step) % total
            if not self.source.has_image(self.indices[other]):
                continue
            images = self._sample(other).images
            if len(images) == len(own) and not set(own) & {image.name for image in images}:
                return images
        raise ValueError(
            f"sample {sample.id}: found no other sample with {len(own)} different images to exchange,"
            f" expected one of the {total}; set blind: false"
        )

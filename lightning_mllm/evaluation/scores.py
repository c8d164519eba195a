"""The answers to one evaluation set, gathered over ranks, and what they are worth."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from lightning_mllm.contracts import Batch, Evaluation
from lightning_mllm.evaluation.bootstrap import Interval, cluster_numbers, metric_intervals
from lightning_mllm.evaluation.metrics import Asked, Ranking, RankMetric, SampleMetric
from lightning_mllm.evaluation.tasks import TASKS, check_task

T = TypeVar("T")

Key = tuple[int, str]
"""The position of a sample in its set; where a data module gives none, -1 and the sample's id."""

PICTURE_SIDE = 224
LOSSLESS_SIDE = 96
"""Pictures up to this size are kept as PNG: JPEG blurs drawn scenes."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question and its answer, for people to look at."""

    id: str
    prompt: str
    answer: str
    references: tuple[str, ...]
    picture: str = ""
    """The first image as a `data:` address; empty for a text-only sample."""
    score: float | None = None
    """The headline score of this answer; None if that is a score of a corpus."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    id: str
    cluster: tuple[str, ...]
    """As in `Sample`."""
    prompt: str
    answer: str
    references: tuple[str, ...]
    question_type: str = ""
    """As in `Sample`."""
    ranking: Ranking | None = None
    """Only of tasks whose scores read it: the closed set may be thousands of texts."""


class Scores:
    """Collects the answers to one evaluation set.

    Each rank calls `update` (written answers) or `rank` (closed sets) with its own batches, then all of them call
    `compute`. A sample is known by its position in the set (`Batch.indices`; by its id where a data module gives none):
    one that several ranks answered (loaders repeat some to give every rank equally many) counts once, two that read
    alike count twice.

    Intervals draw pictures with all their questions (`Batch.clusters`). So do those of a blind twin, by the questions'
    own pictures and not by those that were shown instead: what chance gave the set is its pictures, with the questions
    that people asked about them; which other picture is shown follows from that. Both twins are then scored on the same
    draws.

    Args:
        evaluation: the set; its task chooses the scores, its suffix completes their names.
        num_examples: how many samples to keep for people; which ones is a function of the ids alone.
    """

    def __init__(self, evaluation: Evaluation, *, num_examples: int = 24) -> None:
        check_task(evaluation.task)
        assert evaluation.answered, evaluation.task
        self.evaluation = evaluation
        self.num_examples = num_examples
        self._ranked = any(issubclass(kind, RankMetric) for kind in TASKS[evaluation.task].metrics)
        self._answers: dict[Key, _Answer] = {}
        self._pictures: dict[Key, str] = {}
        self._intervals: dict[str, Interval] | None = None
        self._examples: list[Example] = []
        self.num_answers = 0
        """Samples answered, over all ranks; known after `compute`."""
        self.num_clusters = 0
        """Pictures (or documents) that they are about, which intervals draw; known after `compute`."""
        self.rows: list[dict[str, Any]] = []
        """Every answer with its headline score, in the order of the set; known after `compute`."""
        self.kinds: dict[str, dict[str, dict[str, float]]] = {}
        """Of the scores that are told by kind: name with the set's suffix -> kind of question -> value, low, high,
        samples; known after `compute`."""

    def update(self, batch: Batch, answers: Sequence[str]) -> None:
        """Adds the answers to the rows of `batch`."""
        if self._ranked:
            raise ValueError(
                f"sample {batch.ids[0]}: found no candidates, expected some to rank for the task"
                f" '{self.evaluation.task}'"
            )
        self._update(batch, answers, [None] * len(answers))

    def rank(self, batch: Batch, likelihoods: Sequence[Sequence[float]]) -> None:
        """Adds the log-likelihoods of the candidates of each row; the answer is the likeliest one."""
        assert len(likelihoods) == len(batch.ids) == len(batch.candidates)
        rankings = []
        for id, candidates, row in zip(batch.ids, batch.candidates, likelihoods, strict=True):
            try:
                rankings.append(Ranking(tuple(candidates), tuple(row)))
            except ValueError as error:
                raise ValueError(f"sample {id}: {error}") from None
        self._update(batch, [each.best for each in rankings], rankings if self._ranked else [None] * len(rankings))

    def _update(self, batch: Batch, answers: Sequence[str], rankings: Sequence[Ranking | None]) -> None:
        assert len(answers) == len(batch.ids) == len(batch.references) == len(batch.prompts)
        assert self._intervals is None, "compute was called already"
        clusters = batch.clusters or [()] * len(batch.ids)
        types = batch.question_types or [""] * len(batch.ids)
        rows = zip(batch.ids, clusters, batch.prompts, answers, batch.references, types, rankings, strict=True)
        indices = keys_of(batch)
        for index, (id, cluster, prompt, answer, references, kind, ranking) in zip(indices, rows, strict=True):
            if not references:
                raise ValueError(f"sample {id}: found no reference, expected at least one to score its answer")
            new = _Answer(
                id=id,
                cluster=cluster,
                prompt=prompt,
                answer=answer,
                references=tuple(references),
                question_type=kind,
                ranking=ranking,
            )
            self._add(self._answers, index, new)
        kept = spread({n: self._answers[n].id for n in [*self._pictures, *indices]}, self.num_examples)
        row_of = {index: row for row, index in enumerate(indices)}
        self._pictures = {n: self._pictures[n] if n in self._pictures else picture(batch, row_of[n]) for n in kept}

    def compute(self) -> dict[str, Interval]:
        """Score name with the set's suffix -> value and interval, over the answers of all ranks; the same on each."""
        if self._intervals is None:
            everywhere: dict[Key, _Answer] = {}
            pictures: dict[Key, str] = {}
            for answers, some in gather((self._answers, self._pictures)):
                pictures |= some
                for index, answer in answers.items():
                    self._add(everywhere, index, answer)
            if not everywhere:
                raise ValueError(f"evaluation '{self.evaluation.task}': no answer to score, expected at least one")
            self._score(everywhere, pictures)
        assert self._intervals is not None
        return self._intervals

    @property
    def examples(self) -> list[Example]:
        """Samples spread over the set; after `compute`."""
        assert self._intervals is not None, "call compute first, on every rank"
        return self._examples

    def _score(self, known: dict[Key, _Answer], pictures: dict[Key, str]) -> None:
        indices = sorted(known)  # so that intervals do not depend on how many ranks there were
        answers = [known[index] for index in indices]
        references = [each.references for each in answers]
        clusters = cluster_numbers([each.cluster for each in answers])
        self._intervals, headline = {}, None
        self.num_answers, self.num_clusters = len(answers), int(clusters.max()) + 1
        for kind in TASKS[self.evaluation.task].metrics:
            metric = kind()
            ranked = issubclass(kind, RankMetric)
            asked = [Asked(each.id, each.prompt, each.question_type, each.cluster) for each in answers]
            metric.update([each.ranking if ranked else each.answer for each in answers], references, asked)
            found = metric_intervals(metric, clusters)
            if kinds := _by_kind(metric, clusters):
                self.kinds[metric.by_kind + self.evaluation.suffix] = kinds
            self._intervals |= {name + self.evaluation.suffix: value for name, value in found.items()}
            headline = headline or metric
        assert headline is not None
        scores = headline.per_item() if headline.is_mean else [None] * len(answers)
        self.rows = [
            {
                "id": each.id,
                "cluster": cluster,
                "prompt": each.prompt,
                "answer": each.answer,
                **({} if each.ranking is None else asdict(each.ranking)),
                "references": list(each.references),
                "score": score,
                **({"question_type": each.question_type} if each.question_type else {}),
                **({"pictures": list(each.cluster)} if each.cluster else {}),
            }
            for each, cluster, score in zip(answers, clusters.tolist(), scores, strict=True)
        ]
        shown = spread({index: known[index].id for index in indices}, self.num_examples)
        score_of = dict(zip(indices, scores, strict=True))
        self._examples = [
            Example(
                id=known[index].id,
                prompt=known[index].prompt,
                answer=known[index].answer,
                references=known[index].references,
                picture=pictures[index],
                score=score_of[index],
            )
            for index in shown
        ]

    def _add(self, answers: dict[Key, _Answer], index: Key, new: _Answer) -> None:
        known = answers.setdefault(index, new)
        if (known.id, known.prompt, known.references) != (new.id, new.prompt, new.references):
            raise ValueError(
                f"sample {new.id}: found in the place of {known.id} in the evaluation set"
                f" '{self.evaluation.task}{self.evaluation.suffix}', with another prompt or other references, expected"
                " one sample at each position, or unique ids"
            )


def _by_kind(metric: SampleMetric, clusters: Int[np.ndarray, " N"]) -> dict[str, dict[str, float]]:
    """Value, interval and samples of each kind of question, if the metric tells a score by kind."""
    found: dict[str, dict[str, float]] = {}
    for kind in sorted({each.kind for each in metric.asked} - {""}) if metric.by_kind else ():
        rows = [row for row, each in enumerate(metric.asked) if each.kind == kind]
        part = type(metric)()
        answers, references = ([each[row] for row in rows] for each in (metric.answers, metric.references))
        part.update(answers, references, [metric.asked[row] for row in rows])
        interval = metric_intervals(part, clusters[rows])[metric.by_kind]
        found[kind] = {**asdict(interval), "samples": len(rows)}
    return found


def keys_of(batch: Batch) -> list[Key]:
    """What tells each row's sample from the others of its set."""
    indices = batch.indices or [None] * len(batch.ids)
    return [(-1, id) if index is None else (index, "") for index, id in zip(indices, batch.ids, strict=True)]


def picture(batch: Batch, row: int) -> str:
    """The first image of a row as a small `data:` address, or an empty text if it has none."""
    if not batch.num_images or batch.image_rows is None or not (shown := batch.image_rows == row).any():
        return ""
    return encode_picture(batch.images[int(shown.int().argmax())])


def encode_picture(pixels: UInt8[Tensor, "3 H W"] | Float[Tensor, " F"]) -> str:
    """PNG or JPEG as a `data:` address; an empty text of what a frozen tower made of a picture (`mllm cache`)."""
    return "" if pixels.ndim == 1 else address_of(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()))


def address_of(image: Image.Image) -> str:
    """The same of an open picture, which is made small."""
    lossless = max(image.size) <= LOSSLESS_SIDE
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG" if lossless else "JPEG", optimize=True, **({} if lossless else {"quality": 85}))
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def spread(ids: Mapping[Key, str], most: int) -> list[Key]:
    """The keys of the first `most` samples in the order of the hashes of their ids: mixed, and the same however
    the set was divided."""
    return sorted(ids, key=lambda index: (hashlib.sha256(ids[index].encode()).digest(), index))[:most]


def gather(mine: T) -> list[T]:
    """`mine` of every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    everyone: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone  # pyright: ignore[reportReturnType]

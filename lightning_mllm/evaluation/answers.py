"""`test_answers.jsonl` read again: the answers of a run to its test sets, and the metrics that score any part of them.

A sample is known by its id and, where a set holds the id several times, by which of these it is. Blind twins are left
out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_mllm.evaluation.metrics import Asked, DocumentLoss, Ranking, RankMetric, SampleMetric
from lightning_mllm.evaluation.metrics.recall import CUTS
from lightning_mllm.evaluation.metrics.vqa_accuracy import normalise
from lightning_mllm.evaluation.tasks import TASKS, check_task
from lightning_mllm.weights.plain_files import lines, parse

Id = tuple[str, int]
"""Of a sample in its set, and how many samples of the set before it have the same id."""


class Recalls(NamedTuple):
    """What retrieval found for one image."""

    of_image: Sequence[float]
    """f64[3]: how likely one of its captions is among the first 1, 5, 10."""
    of_captions: Sequence[Sequence[float]]
    """f64[captions, 3]: the same of the image, for each of its captions."""


class RecallOfImages(SampleMetric[Recalls]):
    """The scores of retrieval from what each image and its captions found, as means over images and over captions."""

    names = TASKS["retrieval"].names

    def check(self, references: Sequence[str]) -> None:
        pass

    def statistics(self) -> np.ndarray:
        """f64[N, 7]: recalls of the image, sums of those of its captions, and their number."""
        return np.array(
            [[*each.of_image, *np.sum(each.of_captions, axis=0), len(each.of_captions)] for each in self.answers]
        )

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        cuts = len(CUTS)
        return np.concatenate([sums[..., :cuts] / samples[..., None], sums[..., cuts:-1] / sums[..., -1:]], axis=-1)


@dataclass(frozen=True, kw_only=True)
class AnsweredSample:
    """One line of the file."""

    cluster: int
    prompt: str
    answer: str
    """Empty of documents."""
    references: tuple[str, ...]
    question_type: str
    pictures: tuple[str, ...]
    scored: object
    """What the metrics of its task take: a text, a Ranking, Recalls or a DocumentLoss."""


@dataclass(frozen=True, kw_only=True)
class AnsweredSet:
    """The answers of one run to one test set."""

    task: str
    part: str
    samples: Mapping[Id, AnsweredSample]
    """In the order of the set."""

    @property
    def name(self) -> str:
        """Task and part, as `test.json` counts samples."""
        return f"{self.task}_{self.part}" if self.part else self.task

    def metrics(self, chosen: Sequence[Id]) -> list[SampleMetric]:
        """Every metric of the task, over the chosen samples; the first one is the headline's."""
        found: list[SampleMetric] = []
        for kind in (RecallOfImages,) if self.task == "retrieval" else TASKS[self.task].metrics:
            metric: Any = kind()
            samples = [self.samples[each] for each in chosen]
            asked = [
                Asked(id, each.prompt, each.question_type, each.pictures)
                for (id, _), each in zip(chosen, samples, strict=True)
            ]
            metric.update([each.scored for each in samples], [each.references for each in samples], asked)
            found.append(metric)
        return found

    def per_sample(self, chosen: Sequence[Id]) -> list[float]:
        """How good each chosen answer is: its headline score where that is a mean over samples, of retrieval the recall
        at 1, minus the loss a token of documents, else whether it is a reference."""
        if self.task in ("perplexity", "loss"):
            losses = [self.samples[each].scored for each in chosen]
            return [-each.loss / each.tokens for each in losses if isinstance(each, DocumentLoss)]
        if self.task == "retrieval":
            found = [self.samples[each].scored for each in chosen]
            return [float(each.of_image[0]) for each in found if isinstance(each, Recalls)]
        metric = self.metrics(chosen)[0]
        if metric.is_mean:
            return metric.per_item()
        samples = [self.samples[each] for each in chosen]
        return [float(normalise(each.answer) in map(normalise, each.references)) for each in samples]


def read_answers(path: Path) -> dict[str, AnsweredSet]:
    """Name of each test set -> its answers, in the order of the file.

    Raises:
        ValueError: a line is no answer that can be scored again; names the file and the line.
        OSError: the file is gone.
    """
    found: dict[tuple[str, str], dict[Id, AnsweredSample]] = {}
    times: dict[tuple[str, str, str], int] = {}
    for number, row in _rows(path):
        if row.get("blind"):
            continue
        try:
            key = (row["task"], row["part"])
            check_task(row["task"])
            occurrence = times.get((*key, row["id"]), 0)
            times[(*key, row["id"])] = occurrence + 1
            found.setdefault(key, {})[row["id"], occurrence] = _sample(row)
        except (KeyError, TypeError, ValueError) as error:
            missing = f"no '{error.args[0]}'" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}:{number}: found {missing}, expected an answer as mllm test writes it; test the run again"
            ) from None
    sets = [AnsweredSet(task=task, part=part, samples=samples) for (task, part), samples in found.items()]
    return {each.name: each for each in sets}


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in lines(path):
        yield number, parse(line, f"{path}:{number}", "a JSON object")


def _sample(row: dict) -> AnsweredSample:
    scored: object = row.get("answer", "")
    if row["task"] in ("perplexity", "loss"):
        scored = DocumentLoss(row["loss"], row["tokens"])
    elif row["task"] == "retrieval":
        scored = Recalls(row["text_recalls"], row["image_recalls"])
    elif any(issubclass(kind, RankMetric) for kind in TASKS[row["task"]].metrics):
        scored = Ranking(tuple(row["candidates"]), tuple(row["likelihoods"]))
    return AnsweredSample(
        cluster=row["cluster"],
        prompt=row.get("prompt", ""),
        answer=row.get("answer", ""),
        references=tuple(row.get("references", ())),
        question_type=row.get("question_type", ""),
        pictures=tuple(row.get("pictures", ())),
        scored=scored,
    )

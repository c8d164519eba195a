"""Whether a stage's sets can be read and scored: asked before a net is built or trained, of annotations alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

from lightning_mllm.contracts import Evaluation, Sample
from lightning_mllm.evaluation.metrics import Asked
from lightning_mllm.evaluation.tasks import TASKS, check_task

Split = Literal["val", "test"]


@runtime_checkable
class HasSets(Protocol):
    """A data module whose sets can be checked."""

    def evaluation_samples(self, split: Split) -> Iterator[tuple[str, Evaluation, Iterator[Sample]]]:
        """Name of each set, what it is scored by, and its samples without pixels.

        Raises:
            ValueError: a set cannot be read.
        """
        ...


@runtime_checkable
class HasTrainingData(Protocol):
    """A data module whose training data can be read ahead."""

    def load_training(self) -> None:
        """Reads the annotations of what it trains on.

        Raises:
            ValueError: a file cannot be read.
        """
        ...


def check_training(data: object) -> None:
    """Reads what a data module trains on, if it can; no image is opened.

    Raises:
        ValueError: a file cannot be read.
    """
    if isinstance(data, HasTrainingData):
        data.load_training()


def check_sets(data: object, splits: Sequence[Split] = ("val", "test")) -> None:
    """Reads the sets that a data module validates and tests with, if it has any; no image is opened.

    Raises:
        ValueError: in one sentence with the set's name: a file cannot be read, no score knows the task, there is no
            sample, or a sample has no references of the kind that its score needs.
    """
    if isinstance(data, HasSets):
        for split in splits:
            for name, evaluation, samples in data.evaluation_samples(split):
                try:
                    _check_set(evaluation, samples)
                except ValueError as error:
                    raise ValueError(f"data.{split}.{name}: {error}") from error


def score_names(evaluation: Evaluation) -> list[str]:
    """What the scores of a set will be called, the headline first."""
    return [name + evaluation.suffix for name in TASKS[evaluation.task].names]


def _check_set(evaluation: Evaluation, samples: Iterator[Sample]) -> None:
    check_task(evaluation.task)
    metrics = [kind() for kind in TASKS[evaluation.task].metrics]
    sample, asked = None, list[Asked]()
    for sample in samples:
        if evaluation.task == "loss":
            return  # can be read; what it learns is its answer
        try:
            if (sample.documents is None) is (evaluation.task == "perplexity"):
                found, expected = ("no", "one") if sample.documents is None else ("a", "a question")
                raise ValueError(f"found {found} document, expected {expected} for the task '{evaluation.task}'")
            if evaluation.task == "perplexity":
                return  # of plain text, a document is as good as any
            if not sample.references:
                raise ValueError("found no reference, expected at least one")
            if evaluation.task == "retrieval" and len(sample.images) != 1:
                raise ValueError(f"found {len(sample.images)} images, expected one to retrieve captions")
            for metric in metrics:
                metric.check_sample(sample.references, sample.candidates)
        except ValueError as error:
            raise ValueError(f"sample {sample.id}: {error}") from None
        prompt = next((turn.text for turn in reversed(sample.turns) if turn.role == "user"), "")
        pictures = sample.cluster or tuple(sorted({image.name for image in sample.images}))
        asked.append(Asked(sample.id, prompt, sample.question_type, pictures))
    if sample is None:
        raise ValueError("found no sample, expected at least one")
    for metric in metrics:
        metric.check_questions(asked)

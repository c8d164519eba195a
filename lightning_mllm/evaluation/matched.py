"""The samples that several runs answered, their pictures, their kinds of questions, and where two sides differ most."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lightning_mllm.contracts import ImageFile
from lightning_mllm.evaluation.answers import AnsweredSet, Id
from lightning_mllm.evaluation.bootstrap import Values, cluster_numbers
from lightning_mllm.evaluation.compared_runs import ComparedRun, Side
from lightning_mllm.evaluation.metrics.vqa_accuracy import normalise
from lightning_mllm.evaluation.paired import of_clusters, together
from lightning_mllm.evaluation.scores import address_of
from lightning_mllm.processing.images import ImageError, decode_image

SHORT_ANSWERS = ("vqa", "vqa_official", "ivqa", "exact", "exact_sphinx", "chart", "document")
"""Tasks whose questions are told apart by their answers where the data name no type."""
FEWEST = 20
"""Pictures of a kind that is tested by itself."""
RARER = "rarer ones"
SHOWN = 6
"""Samples of a set for each side that does better."""
EQUAL = 1e-9


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A sample on which one side does better."""

    id: str
    prompt: str
    references: tuple[str, ...]
    picture: str
    """As a `data:` address; empty where no picture is found."""
    first: str
    other: str
    """The answers; of a side of several seeds that of the first."""
    scores: tuple[float, float]
    """Of the two answers, means over seeds."""


@dataclass(frozen=True)
class Matched:
    """One test set, as all runs of two sides answered it."""

    first: tuple[AnsweredSet, ...]
    other: tuple[AnsweredSet, ...]
    ids: tuple[Id, ...]
    """Answered by all, in the order of the first run."""
    cluster: Int[np.ndarray, " N"]
    """Samples that share a picture, in any of the runs' tests, are of one cluster."""
    alone: tuple[int, int]
    """Samples that each side answered, in any of its runs, and are not among them."""

    @classmethod
    def of(cls, first: Side, other: Side, name: str) -> Matched:
        """The set `name` of two sides.

        Raises:
            ValueError: the runs give other references for the same sample, or have no sample in common.
        """
        runs = [*first.runs, *other.runs]
        sets = [run.answers[name] for run in runs]
        ids = tuple(each for each in sets[0].samples if all(each in answered.samples for answered in sets[1:]))
        if not ids:
            raise ValueError(f"compare: found no sample of '{name}' that all of {_listed(runs)} answered")
        for run, answered in zip(runs, sets, strict=True):
            for each in ids:
                if (found := answered.samples[each].references) != (expected := sets[0].samples[each].references):
                    raise ValueError(
                        f"compare: sample {each[0]} of '{name}' has the references {list(found)} in {run.name} and"
                        f" {list(expected)} in {runs[0].name}, expected one test set"
                    )
        shared = [[f"{n} {answered.samples[each].cluster}" for n, answered in enumerate(sets)] for each in ids]
        sides = tuple(sets[: len(first.runs)]), tuple(sets[len(first.runs) :])
        alone = [len({each for answered in side for each in answered.samples} - {*ids}) for side in sides]
        return cls(*sides, ids, cluster_numbers(shared), (alone[0], alone[1]))

    @property
    def clusters(self) -> int:
        """How many there are."""
        return int(self.cluster.max()) + 1

    def score_names(self) -> list[str]:
        """Of all of the task's metrics, in order."""
        return [name for metric in self.first[0].metrics(self.ids[:1]) for name in metric.names]

    def scores(self, run: AnsweredSet) -> Values:
        """Of all samples, the scores of `score_names`."""
        return together([of_clusters(metric, self.cluster) for metric in run.metrics(self.ids)])

    def scores_of_kinds(self, run: AnsweredSet, kinds: Mapping[str, Int[np.ndarray, " K"]]) -> Values:
        """The headline score of the samples of each kind."""
        chosen = [(run.metrics([self.ids[k] for k in where])[0], self.cluster[where]) for where in kinds.values()]
        return together([_headline(of_clusters(metric, cluster)) for metric, cluster in chosen])

    def kinds(self) -> dict[str, Int[np.ndarray, " K"]]:
        """Kind of question -> the indices of its samples in `ids`: as the data call it, else by the answer; kinds about
        fewer than 20 pictures together. Empty where all are of one kind."""
        samples = [self.first[0].samples[each] for each in self.ids]
        typed = any(each.question_type for each in samples)
        if not typed and self.first[0].task not in SHORT_ANSWERS:
            return {}
        names = [each.question_type if typed else answer_type(each.references) for each in samples]
        found = {name: np.flatnonzero([each == name for each in names]) for name, _ in Counter(names).most_common()}
        rare = [name for name, where in found.items() if len(np.unique(self.cluster[where])) < FEWEST]
        kept = {name or "of no type": where for name, where in found.items() if name not in rare}
        if rare:
            kept[RARER] = np.sort(np.concatenate([found[name] for name in rare]))
        return kept if len(kept) > 1 else {}

    @cached_property
    def per_sample(self) -> Float[np.ndarray, "2 N"]:
        """How good the answers of both sides are, means over seeds."""
        sides = (self.first, self.other)
        return np.stack([np.mean([run.per_sample(self.ids) for run in side], axis=0) for side in sides])

    def contrasts(self, pictures: Mapping[str, str]) -> list[Contrast]:
        """Where the answers' scores differ most, as many for each side; of equals, by the hash of their ids.

        Args:
            pictures: id -> address, where the file of a picture is gone.
        """
        scores = self.per_sample
        gap = scores[0] - scores[1]
        order = sorted(
            range(len(gap)), key=lambda k: (-abs(gap[k]), hashlib.sha256(self.ids[k][0].encode()).digest(), k)
        )
        found = []
        for sign in (1, -1):
            for k in [k for k in order if sign * gap[k] > EQUAL][:SHOWN]:
                one, two = (side[0].samples[self.ids[k]] for side in (self.first, self.other))
                found.append(
                    Contrast(
                        id=self.ids[k][0],
                        prompt=" ".join(one.prompt.replace("<image>", " ").split()),
                        references=one.references,
                        picture=_picture([*one.pictures, *two.pictures]) or pictures.get(self.ids[k][0], ""),
                        first=one.answer,
                        other=two.answer,
                        scores=(float(scores[0, k]), float(scores[1, k])),
                    )
                )
        return found


def answer_type(references: Sequence[str]) -> str:
    """As in VQAv2: 'yes/no', 'number' or 'other', by the most common reference."""
    answer = normalise(Counter(references).most_common(1)[0][0])
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.replace(".", "", 1).isdigit() else "other"


def _headline(values: Values) -> Values:
    return lambda counts: values(counts)[:, :1]


def _picture(names: Sequence[str]) -> str:
    for name in dict.fromkeys(names):
        if Path(name).is_file():
            try:
                return address_of(decode_image(ImageFile(Path(name))))
            except ImageError:
                continue
    return ""


def _listed(runs: Sequence[ComparedRun]) -> str:
    return ", ".join(run.name for run in runs)

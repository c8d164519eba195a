"""What the tests of held-out sets share."""

from __future__ import annotations

from collections.abc import Sequence

from data_modules.sources import Source
from lightning_mllm.contracts import Sample
from lightning_mllm.evaluation.metrics import Ranking, RankMetric
from lightning_mllm.evaluation.tasks import TASKS
from tests.data_modules.files import generator


def samples(source: Source) -> list[Sample]:
    """All samples of a source that is loaded for the first time."""
    source.load()
    return [source.sample(index, generator(index)) for index in range(len(source))]


def turns(sample: Sample) -> list[str]:
    assert [turn.role for turn in sample.turns] == ["user", "assistant"]
    return [turn.text for turn in sample.turns]


def score(given: Sequence[Sample], right: bool = True) -> float:
    """The headline score of the task of samples that are all answered with what is learned, or with something wrong."""
    metric = TASKS[given[0].task].metrics[0]()
    for sample in given:
        learned = sample.turns[-1].text
        if isinstance(metric, RankMetric):
            liked = [float((each == learned) == right) for each in sample.candidates]
            metric.update([Ranking(sample.candidates, tuple(liked))], [sample.references])
        else:
            metric.update([learned if right else "something else"], [sample.references])
    return metric.compute()[metric.names[0]].item()

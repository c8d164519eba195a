from __future__ import annotations

from collections.abc import Iterator

import pytest

from lightning_mllm.contracts import Evaluation
from lightning_mllm.evaluation.checks import score_names
from lightning_mllm.evaluation.metrics import SampleMetric
from lightning_mllm.evaluation.tasks import TASKS, check_task, find_score

SCORES = [score for task in TASKS.values() for score in task.scores]


def with_scores(kind: type[SampleMetric]) -> Iterator[type[SampleMetric]]:
    if hasattr(kind, "names"):
        yield kind
    for each in kind.__subclasses__():
        yield from with_scores(each)


def test_the_table_holds_every_score_of_every_metric_once() -> None:
    metrics = {kind for task in TASKS.values() for kind in task.metrics}
    package = SampleMetric.__module__.rpartition(".")[0]
    own = {kind for kind in with_scores(SampleMetric) if kind.__module__.startswith(f"{package}.")}
    assert metrics == own
    names = [score.name for score in SCORES]
    assert len(names) == len(set(names)) == len({score.label for score in SCORES})
    for task in TASKS.values():
        assert not task.metrics or task.names == tuple(name for kind in task.metrics for name in kind.names)
        assert task.title and task.scores[0].headline
        for kind in task.metrics:
            first = next(score for score in task.scores if score.name == kind.names[0])
            assert first.higher_is_better is kind.higher_is_better


@pytest.mark.parametrize("task", TASKS)
def test_what_a_set_is_called_is_found_in_the_table(task: str) -> None:
    for part in ("", "novel", "a_b"):
        for name, score in zip(score_names(Evaluation(task=task, part=part)), TASKS[task].scores, strict=True):
            assert find_score(name) == (score, part)


def test_names_that_no_task_gives() -> None:
    assert find_score("vqa") is None and find_score("bleu_12") is None
    with pytest.raises(ValueError, match=r"task is 'vqaa', expected one of vqa, .* \(did you mean 'vqa'\?\)"):
        check_task("vqaa")

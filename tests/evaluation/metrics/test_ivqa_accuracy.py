from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics.ivqa_accuracy import IvqaAccuracy, accuracy


def test_two_people_who_agree_are_enough() -> None:
    people = ["red pan", "red pan", "pan", "A frying pan.", "skillet"]
    assert accuracy("Red pan", people) == 1
    assert accuracy("the pan", people) == 0.5
    assert accuracy("frying pan", people) == 0.5
    assert accuracy("pot", people) == 0
    assert accuracy("pan", ["pan"] * 5) == 1


def test_the_score_is_the_mean() -> None:
    metric = IvqaAccuracy()
    metric.update(["a knife", "3", "x"], [["knife"] * 5, ["three", "2", "4", "5", "6"], ["y"] * 5])
    assert metric.per_item() == [1, 0.5, 0]
    assert float(metric.compute()["ivqa_accuracy"]) == 0.5


@pytest.mark.parametrize("count", [0, 1, 4, 10])
def test_other_numbers_of_references_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"found a sample with {count} references, expected 5"):
        IvqaAccuracy().update(["a"], [["b"] * count])

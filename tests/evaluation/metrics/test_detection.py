from __future__ import annotations

import pytest

from lightning_mllm.evaluation.bootstrap import metric_intervals
from lightning_mllm.evaluation.metrics import DetectionScores

TWO = "[[000,000,400,400;500,500,900,900]]"


def values(answers: list[str], references: list[str]) -> list[float]:
    metric = DetectionScores()
    metric.update(answers, [[text] for text in references])
    return [each.item() for each in metric.compute().values()]


@pytest.mark.parametrize(
    ("answer", "precision", "recall", "f1"),
    [
        (TWO, 1.0, 1.0, 1.0),
        ("[[500,500,900,900;000,000,400,400]]", 1.0, 1.0, 1.0),  # in any order
        ("[[000,000,400,400]]", 1.0, 0.5, 2 / 3),
        ("[[000,000,400,400;010,010,400,400;500,500,900,900]]", 2 / 3, 1.0, 0.8),  # a box is found once
        ("[[000,000,400,200]]", 1.0, 0.5, 2 / 3),  # exactly half of the union
        ("[[000,000,400,199]]", 0.0, 0.0, 0.0),
    ],
)
def test_by_hand(answer: str, precision: float, recall: float, f1: float) -> None:
    assert values([answer], [TWO]) == pytest.approx([f1, precision, recall, 0.0])


def test_the_nearest_pairs_are_made_first() -> None:
    """The first answered box fits both true ones, the second only the first: taking what fits would lose one."""
    true = "[[000,000,500,400;200,000,700,400]]"
    assert values(["[[120,000,620,400;000,000,480,400]]"], [true])[0] == 1.0


def test_boxes_are_counted_over_the_corpus() -> None:
    # 2 of 2 found, then 0 of 1 with nothing that is a box: 2 pairs, 2 answered, 3 true.
    assert values([TWO, "none"], [TWO, "[[100,100,300,300]]"]) == pytest.approx([0.8, 1.0, 2 / 3, 0.5])


def test_the_interval_is_of_the_corpus_score() -> None:
    metric = DetectionScores()
    metric.update([TWO, "none"] * 20, [[TWO]] * 40)
    found = metric_intervals(metric)["detection_f1"]
    assert not metric.is_mean and found.value == pytest.approx(2 / 3) and found.low < found.value < found.high


@pytest.mark.parametrize("references", [["dog"], [TWO, TWO], []])
def test_references_that_are_no_boxes(references: list[str]) -> None:
    with pytest.raises(ValueError, match="detection: found the references"):
        DetectionScores().update([TWO], [references])

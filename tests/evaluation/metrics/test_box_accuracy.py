from __future__ import annotations

import pytest

from lightning_mllm.evaluation.bootstrap import metric_intervals
from lightning_mllm.evaluation.metrics import BoxAccuracy

REFERENCE = "[[000,000,500,500]]"


def scored(answers: list[str], references: list[list[str]]) -> BoxAccuracy:
    metric = BoxAccuracy()
    metric.update(answers, references)
    return metric


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("[[000,000,500,500]]", 1.0),
        ("[[000,000,250,500]]", 1.0),  # 0.125 of 0.25: exactly a half
        ("[[000,000,249,500]]", 0.0),
        ("[[000,000,750,500]]", 1.0),  # 0.25 of 0.375: two thirds
        ("[[250,000,750,500]]", 0.0),  # 0.125 of 0.375: a third
        ("[[166,000,666,500]]", 1.0),  # 0.167 of 0.333: just above a half
        ("[[168,000,668,500]]", 0.0),  # just below
        ("[[000,000,707,707]]", 1.0),  # 0.25 of 0.499849
        ("[[000,000,708,708]]", 0.0),  # 0.25 of 0.501264
        ("the red circle [[000,000,500,500]].", 1.0),
        ("[[600,600,900,900]] [[000,000,500,500]]", 0.0),  # the first one counts
    ],
)
def test_half_of_the_union_or_more_by_hand(answer: str, right: float) -> None:
    metric = scored([answer], [[REFERENCE]])
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "box_accuracy": right,
        "box_malformed": 0.0,
    }


@pytest.mark.parametrize("answer", ["", "on the left", "[[100,200,300]]", "[[500,0,0,500]]", "[0, 0, 500, 500]"])
def test_no_box_is_wrong_and_malformed(answer: str) -> None:
    metric = scored([answer, REFERENCE], [[REFERENCE], [REFERENCE]])
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "box_accuracy": 0.5,
        "box_malformed": 0.5,
    }
    assert metric.per_item() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("[0, 0, 260, 500]", "[0, 0, 500, 500]"), ("[0.00, 0.00, 0.26, 0.50]", "[0.00, 0.00, 0.50, 0.50]")],
)
def test_answers_are_read_in_the_dialect_of_the_reference(answer: str, reference: str) -> None:
    assert scored([answer], [[reference]]).compute()["box_accuracy"].item() == 1.0
    assert scored([answer], [[REFERENCE]]).compute()["box_malformed"].item() == 1.0


def test_any_reference_may_be_met() -> None:
    references = [["[[000,000,100,100]]", "[[500,500,900,900]]"]]
    assert scored(["[[500,500,900,901]]"], references).compute()["box_accuracy"].item() == 1.0


def test_the_interval_holds_the_value() -> None:
    metric = scored([REFERENCE, "nothing"] * 20, [[REFERENCE]] * 40)
    found = metric_intervals(metric)
    assert list(found) == ["box_accuracy", "box_malformed"]
    assert found["box_accuracy"].low < 0.5 == found["box_accuracy"].value < found["box_accuracy"].high


@pytest.mark.parametrize(
    ("references", "sentence"),
    [
        ([], "found a sample without a reference"),
        (["red"], "box_accuracy: found the reference 'red', expected a box in one of the dialects"),
        ([REFERENCE, "[0, 0, 5, 5]"], "found references in cogvlm and ferret, expected one"),
        (["[[0,0,5,5;5,5,9,9]]"], r"found several boxes in the reference '\[\[0,0,5,5;5,5,9,9\]\]', expected one"),
    ],
)
def test_references_that_are_no_box(references: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BoxAccuracy().update(["x"], [references])

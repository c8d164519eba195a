from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics import Anls
from lightning_mllm.evaluation.metrics.anls import distance


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_edits_by_hand(one: str, other: str, edits: int) -> None:
    assert distance(one, other) == distance(other, one) == edits


@pytest.mark.parametrize(
    ("answer", "references", "value"),
    [
        ("1/8/93", ["1/8/93"], 1.0),
        ("1/8/98", ["1/8/93"], 5 / 6),
        ("Sitting", ["kitten"], 4 / 7),  # 3 edits of 7
        ("ab", ["abcd"], 0.5),  # exactly a half still counts
        ("ab", ["abcde"], 0.0),  # 2 of 5 is below
        ("ITC  Limited", ["itc limited"], 1.0),
        ("cat", ["dog", "cats"], 0.75),
        ("", ["cat"], 0.0),
    ],
)
def test_by_hand(answer: str, references: list[str], value: float) -> None:
    metric = Anls()
    metric.update([answer], [references])
    assert metric.compute()["anls"].item() == pytest.approx(value)


def test_it_is_a_mean() -> None:
    metric = Anls()
    metric.update(["cat", "ab"], [["cat"], ["abcd"]])
    assert metric.compute()["anls"].item() == 0.75 and metric.per_item() == [1.0, 0.5]

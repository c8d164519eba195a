from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics.vqa_accuracy import OfficialVqaAccuracy, VqaAccuracy, accuracy, normalise
from tests.evaluation.metrics.published import published

PUBLISHED = published("vqa")
ITEMS = PUBLISHED["items"]


def test_every_normalised_text_agrees() -> None:
    for text, expected in PUBLISHED["normalised"]:
        assert normalise(text) == expected, text


ALWAYS = published("vqa_always")


def test_by_the_official_script_each_item_and_the_mean_agree() -> None:
    metric = OfficialVqaAccuracy()
    metric.update([item["answer"] for item in ITEMS], [item["references"] for item in ITEMS])
    assert metric.per_item() == pytest.approx([item["vqa_accuracy"] for item in ITEMS], abs=1e-9)
    assert float(metric.compute()["vqa_accuracy_official"]) == pytest.approx(PUBLISHED["overall"], abs=1e-9)
    assert len({round(item["vqa_accuracy"], 3) for item in ITEMS}) >= 4


@pytest.mark.parametrize("name", ["items", "raw"])
def test_normalised_always_each_item_agrees_with_the_scripts_of_those_who_published(name: str) -> None:
    """LAVIS's and SPHINX's on references that are their own normalised texts, LLaVA's on references as people write."""
    items, metric = ALWAYS[name], VqaAccuracy()
    metric.update([item["answer"] for item in items], [item["references"] for item in items])
    assert metric.per_item() == pytest.approx([item["vqa_accuracy"] for item in items], abs=1e-9)
    official = [accuracy(item["answer"], item["references"], always=False) for item in items]
    assert sum(a != b for a, b in zip(official, metric.per_item(), strict=True)) > 10, "the rules differ"


def test_leaving_one_out_counts_by_hand() -> None:
    people = ["red"] * 2 + ["blue"] * 8
    assert accuracy("red", people) == pytest.approx((2 * (1 / 3) + 8 * (2 / 3)) / 10)
    assert accuracy("Blue.", people) == 1
    assert accuracy("green", people) == 0


def test_people_who_agree_are_compared_normalised_or_by_name_as_written() -> None:
    assert accuracy("Yes", ["yes"] * 10) == accuracy("yes", ["Yes."] * 10) == 1
    # LAVIS takes no articles, capitals or number words out of references: 0 there.
    assert accuracy("two", ["two"] * 10) == 1
    assert accuracy("Red.", ["red"] * 10, always=False) == 0
    assert accuracy("red\n", ["red"] * 10, always=False) == 1


def test_one_reference_is_compared_normalised() -> None:
    assert accuracy("The two.", ["2"]) == 1
    assert accuracy("three", ["2"]) == 0


@pytest.mark.parametrize("count", [0, 2, 9, 11])
def test_other_numbers_of_references_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"found a sample with {count} references, expected 10"):
        VqaAccuracy().update(["a"], [["b"] * count])

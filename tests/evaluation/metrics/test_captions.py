"""CIDEr-D, BLEU and ROUGE-L against pycocoevalcap's own values."""

from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics import Bleu, CiderD, RougeL, TextMetric
from lightning_mllm.evaluation.metrics.rouge import longest_common_subsequence
from tests.evaluation.metrics.published import published

PUBLISHED = published("captions")
ITEMS = PUBLISHED["items"]


def scored(kind: type[TextMetric], items: list[dict]) -> TextMetric:
    metric = kind()
    for start in range(0, len(items), 7):
        some = items[start : start + 7]
        metric.update([item["answer"] for item in some], [item["references"] for item in some])
    return metric


@pytest.mark.parametrize("kind", [CiderD, Bleu, RougeL])
def test_corpus_values_agree(kind: type[TextMetric]) -> None:
    values = scored(kind, ITEMS).compute()
    assert set(values) == set(kind.names)
    for name, value in values.items():
        assert float(value) == pytest.approx(PUBLISHED["corpus"][name], abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("kind", [CiderD, Bleu])
def test_values_of_another_corpus_agree(kind: type[TextMetric]) -> None:
    for name, value in scored(kind, ITEMS[:10]).compute().items():
        assert float(value) == pytest.approx(PUBLISHED["first_ten"][name], abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("kind", [CiderD, RougeL])
def test_each_item_agrees(kind: type[TextMetric]) -> None:
    expected = [item[kind.names[0]] for item in ITEMS]
    assert scored(kind, ITEMS).per_item() == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_the_stored_items_are_not_trivial() -> None:
    assert any(item["answer"] == "" for item in ITEMS)
    assert sum(0 < item["cider"] < 10 for item in ITEMS) > 30
    assert {len(item["references"]) for item in ITEMS} == {1, 3, 5}


def test_bleu_has_no_score_per_item() -> None:
    with pytest.raises(TypeError, match="score of a corpus"):
        scored(Bleu, ITEMS).per_item()


def test_longest_common_subsequence() -> None:
    assert longest_common_subsequence(list("abcd"), list("bxda")) == 2
    assert longest_common_subsequence([], ["a"]) == 0

from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics.exact_match import ExactMatch, SphinxExactMatch
from tests.evaluation.metrics.published import published

PUBLISHED = published("exact")


def test_each_item_and_the_mean_agree() -> None:
    metric = ExactMatch()
    metric.update([i["answer"] for i in PUBLISHED["items"]], [i["references"] for i in PUBLISHED["items"]])
    assert metric.per_item() == [i["exact_match"] for i in PUBLISHED["items"]]
    assert float(metric.compute()["exact_match"]) == pytest.approx(PUBLISHED["overall"], abs=1e-12)
    assert 0 < PUBLISHED["overall"] < 1


def test_sphinx_s_rule_agrees_with_its_released_evaluation() -> None:
    items, metric = published("exact_sphinx")["items"], SphinxExactMatch()
    metric.update([item["answer"] for item in items], [item["references"] for item in items])
    assert metric.per_item() == [item["exact_match"] for item in items]
    squad = ExactMatch()
    squad.update(metric.answers, metric.references)
    assert squad.per_item() != metric.per_item(), "articles and other punctuation stay"

from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics.exact_match import ExactMatch
from tests.evaluation.metrics.published import published

PUBLISHED = published("exact")


def test_each_item_and_the_mean_agree() -> None:
    metric = ExactMatch()
    metric.update([i["answer"] for i in PUBLISHED["items"]], [i["references"] for i in PUBLISHED["items"]])
    assert metric.per_item() == [i["exact_match"] for i in PUBLISHED["items"]]
    assert float(metric.compute()["exact_match"]) == pytest.approx(PUBLISHED["overall"], abs=1e-12)
    assert 0 < PUBLISHED["overall"] < 1

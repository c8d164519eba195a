from __future__ import annotations

import numpy as np
import pytest

from lightning_mllm.evaluation.bootstrap import interval, metric_intervals
from lightning_mllm.evaluation.metrics import Bleu, PopeScores, VqaAccuracy


def test_the_value_is_the_mean_and_the_interval_that_of_the_normal_law() -> None:
    items = np.random.default_rng(0).normal(3, 2, size=400)
    found = interval(items.tolist())
    half = 1.96 * items.std() / 20
    assert found.value == pytest.approx(items.mean())
    assert found.low == pytest.approx(items.mean() - half, abs=0.05)
    assert found.high == pytest.approx(items.mean() + half, abs=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        found = interval((random.random(100) < 0.7).astype(float).tolist(), samples=300, seed=trial, level=0.9)
        held += found.low <= 0.7 <= found.high
    assert 0.82 <= held / 200 <= 0.97


def test_same_seed_same_interval_and_wider_at_a_higher_level() -> None:
    items = [float(i % 3) for i in range(50)]
    assert interval(items) == interval(items)
    assert interval(items, seed=1) != interval(items)
    wide, narrow = interval(items, level=0.99), interval(items, level=0.5)
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_a_constant_has_no_width() -> None:
    found = interval([0.25] * 7)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_corpus_scores_are_computed_anew_on_each_draw() -> None:
    metric = PopeScores()
    metric.update(["yes"] * 30 + ["no"] * 30, [("yes",)] * 20 + [("no",)] * 30 + [("yes",)] * 10)
    found = metric_intervals(metric, samples=200)
    assert list(found) == list(PopeScores.names)
    for name, value in metric.compute().items():
        assert found[name].value == float(value)
        assert found[name].low < float(value) < found[name].high

    random, drawn = np.random.default_rng(0), []
    for _ in range(200):
        rows = random.integers(60, size=60)
        again = PopeScores()
        again.update([metric.answers[i] for i in rows], [metric.references[i] for i in rows])
        drawn.append(float(again.compute()["pope_f1"]))
    assert [found["pope_f1"].low, found["pope_f1"].high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_bleu_has_an_interval() -> None:
    metric = Bleu()
    texts = [f"a {colour} {shape} on a {ground}" for colour in "rgb" for shape in "xyz" for ground in "uv"]
    metric.update(texts, [(text.replace("x", "y"),) for text in texts])
    for found in metric_intervals(metric, samples=100).values():
        assert 0 < found.low < found.value < found.high < 1


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="found no sample"):
        interval([])
    with pytest.raises(ValueError, match="no answer to score"):
        metric_intervals(VqaAccuracy())
    with pytest.raises(ValueError, match=r"level 95"):
        interval([1.0], level=95)

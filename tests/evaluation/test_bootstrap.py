from __future__ import annotations

import time

import numpy as np
import pytest

from lightning_mllm.evaluation.bootstrap import cluster_numbers, interval, metric_intervals
from lightning_mllm.evaluation.metrics import Bleu, CiderD, PopeScores, Ranking, RocAuc, VqaAccuracy


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
        assert found[name].value == pytest.approx(float(value))
        assert found[name].low < float(value) < found[name].high

    random, drawn = np.random.default_rng(0), []
    for rows in random.integers(60, size=(200, 60)):
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
    with pytest.raises(ValueError, match="found 2 clusters of 3 samples, expected one each"):
        interval([1.0, 0.0, 1.0], np.array([0, 1]))
    with pytest.raises(ValueError, match=r"level 95"):
        interval([1.0], level=95)


def clustered(random: np.random.Generator, pictures: int, questions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Answers right with a chance that each picture draws (mean 0.6), and the picture of each."""
    chance = random.beta(1.2, 0.8, size=pictures)
    picture = np.repeat(np.arange(pictures), questions)
    return (random.random(len(picture)) < chance[picture]).astype(float), picture


def test_clustered_intervals_hold_the_truth_as_often_as_they_say_and_naive_ones_do_not() -> None:
    random, held, naive = np.random.default_rng(3), 0, 0
    for trial in range(400):
        items, picture = clustered(random, 120)
        drawn, alone = (interval(items.tolist(), each, samples=300, seed=trial) for each in (picture, None))
        held += drawn.low <= 0.6 <= drawn.high
        naive += alone.low <= 0.6 <= alone.high
    assert 0.92 <= held / 400 <= 0.97
    assert naive / 400 <= 0.85


def test_a_drawn_set_is_whole_clusters_for_means_corpora_and_ranks() -> None:
    """Against a bootstrap that gathers the answers of the drawn clusters and scores them anew."""
    random = np.random.default_rng(5)
    cluster = np.sort(random.integers(12, size=60))
    words = ["a dog", "a cat on a mat", "two dogs run", "red cars", "a man rides a horse"]
    said = [words[i] for i in random.integers(5, size=60)]
    true = [(words[i], words[j]) for i, j in random.integers(5, size=(60, 2))]
    bleu, auc = Bleu(), RocAuc()
    bleu.update(said, true)
    odds = random.normal(size=60)
    auc.update(
        [Ranking(("yes", "no"), (o, 0.0)) for o in odds],
        [("yes",) if o + random.normal() > 0 else ("no",) for o in odds],
    )
    for metric in (bleu, auc):
        found = metric_intervals(metric, cluster, samples=100)  # pyright: ignore[reportArgumentType]
        drawn = []
        for chosen in np.random.default_rng(0).integers(12, size=(100, 12)):
            rows = [row for number in chosen for row in np.flatnonzero(cluster == number)]
            again = type(metric)()
            again.update([metric.answers[i] for i in rows], [metric.references[i] for i in rows])  # pyright: ignore
            drawn.append(float(again.compute()[metric.names[-1]]))
        assert [found[metric.names[-1]].low, found[metric.names[-1]].high] == pytest.approx(
            np.quantile(drawn, [0.025, 0.975])
        )


def test_captions_are_drawn_by_picture() -> None:
    metric = CiderD()
    truths = [(f"a {c} {s} on {g}", f"{c} {s}") for c in "pqr" for s in "xyz" for g in "uvw"]
    metric.update([one if n // 3 % 2 else "nothing" for n, (one, _) in enumerate(truths)], truths)
    alone, drawn = metric_intervals(metric)["cider"], metric_intervals(metric, np.arange(27) // 3)["cider"]
    assert drawn.value == pytest.approx(alone.value) and drawn.high - drawn.low > 1.4 * (alone.high - alone.low)


def test_samples_that_share_a_picture_directly_or_not_are_one_cluster() -> None:
    shared = [("b",), (), ("a",), ("b", "c"), (), ("c",), ("a",)]
    assert cluster_numbers(shared).tolist() == [0, 1, 2, 0, 3, 0, 2]
    assert cluster_numbers([("d",), ("e",), ("d", "e")]).tolist() == [0, 0, 0]


def test_many_questions_take_seconds() -> None:
    items = np.random.default_rng(0).random(200_000)
    started = time.process_time()
    found = interval(items.tolist(), np.arange(200_000) // 5)
    assert found.low < found.value < found.high
    assert time.process_time() - started < 10

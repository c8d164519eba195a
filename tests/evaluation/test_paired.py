"""Simulated runs of a known truth: how often differences are found that are none, and that are."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_mllm.evaluation.bootstrap import Values
from lightning_mllm.evaluation.metrics import Bleu, VqaAccuracy
from lightning_mllm.evaluation.paired import (
    Paired,
    between_seeds,
    holm,
    means,
    of_clusters,
    paired,
    student,
    together,
    values_of,
)

CLUSTERS = 120


def simulated(
    seed: int,
    *,
    better: float = 0.0,
    runs: tuple[int, int] = (1, 1),
    spread: float = 0.0,
    clusters: int = CLUSTERS,
    samples: int = 200,
) -> Paired:
    """Runs that find the same pictures and questions hard; a question is answered right or not, three a picture.

    Args:
        better: how much the first side sees better, in logits.
        spread: standard deviation between seeds, in logits.
        samples: draws; 2 where only the value is asked for.
    """
    random = np.random.default_rng(seed)
    ease = 0.5 + random.normal(size=(clusters, 1)) + 0.7 * random.normal(size=(clusters, 3))

    def run(shift: float) -> Values:
        right = (ease + 0.8 * random.normal(size=ease.shape) + shift + spread * random.normal() > 0).sum(axis=1)
        return lambda counts: (counts @ right / (3 * counts.sum(axis=1)))[:, None]

    sides = [[run(shift) for _ in range(count)] for count, shift in zip(runs, (better, 0.0), strict=True)]
    return paired(sides[0], sides[1], clusters, samples=samples, seed=seed)[0]


def test_two_runs_that_are_alike_tie_at_the_nominal_rate() -> None:
    found = [simulated(seed) for seed in range(300)]
    outside = np.mean([not each.interval().low <= 0 <= each.interval().high for each in found])
    assert 0.02 <= outside <= 0.085, "0.05, three standard errors around"
    # The interval and the p-value tell the same.
    assert np.mean([(each.p < 0.05) == (each.interval().low * each.interval().high > 0) for each in found]) > 0.98


def test_a_difference_of_the_stated_size_is_found_in_about_80_of_100() -> None:
    detectable = float(np.mean([simulated(seed).detectable() for seed in range(60)]))
    # From logits to the difference of the score that they make.
    logits = np.linspace(0, 0.6, 7)
    made = [
        np.mean([simulated(seed, better=one, clusters=2000, samples=2).value for seed in range(8)]) for one in logits
    ]
    better = float(np.interp(detectable, made, logits))
    found = [simulated(1000 + seed, better=better) for seed in range(300)]
    assert np.mean([each.value for each in found]) == pytest.approx(detectable, rel=0.12)
    assert 0.70 <= np.mean([each.p < 0.05 for each in found]) <= 0.90


def test_the_same_pictures_make_intervals_narrower() -> None:
    found = [simulated(seed) for seed in range(40)]
    widths = [[one.high - one.low for one in (each.interval(), each.unpaired_interval())] for each in found]
    same, own = np.mean(widths, axis=0)
    assert same < 0.75 * own
    # Two sets of pictures: the variances of both add up.
    one = np.std([simulated(seed, samples=2).value for seed in range(200)])
    assert np.mean([np.std(each.drawn) for each in found]) == pytest.approx(one, rel=0.15)


def test_seeds_widen_what_pictures_alone_would_say() -> None:
    for runs in ((3, 3), (2, 2), (1, 3)):
        found = [simulated(seed, runs=runs, spread=0.4) for seed in range(100)]
        assert np.mean([each.p < 0.05 for each in found]) <= 0.1, runs
    pictures = [simulated(seed, runs=(1, 1), spread=0.4) for seed in range(100)]
    assert np.mean([each.p < 0.05 for each in pictures]) > 0.3, "what pictures alone would find between two seeds"


def test_one_side_in_the_other_ones_place_is_the_other_sign() -> None:
    right = np.arange(30) % 4 / 4
    low, high = (lambda counts: (counts @ right / counts.sum(1))[:, None]), (lambda counts: np.ones((len(counts), 1)))
    one, other = paired([high], [low], 30)[0], paired([low], [high], 30)[0]
    assert one.value == -other.value and np.array_equal(one.drawn, -other.drawn)
    assert one.interval().low == pytest.approx(-other.interval().high)
    assert one.p == other.p == 2 / 5001, "no draw lies beyond 0"


def test_runs_that_never_differ_have_no_power() -> None:
    run = [lambda counts: np.ones((len(counts), 1))]
    same = paired(run, run, 10)[0]
    assert (same.value, same.p, same.detectable()) == (0.0, 1.0, 0.0)


def test_scores_of_a_corpus_are_computed_anew_on_each_draw() -> None:
    said = ["a red ball", "a red ball", "one blue cat on a mat", "dogs"]
    truth = [("a red ball",), ("a blue ball",), ("one blue cat on the mat",), ("two dogs",)]
    cluster = np.array([0, 0, 1, 2])
    whole = Bleu()
    whole.update(said, truth)
    accuracy = VqaAccuracy()
    accuracy.update([said[3]], [truth[3]])
    scores = together([of_clusters(whole, cluster), of_clusters(accuracy, cluster[3:])])
    drawn = scores(np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0]]))
    again = Bleu()
    again.update([*said[:2] * 2, said[3]], [*truth[:2] * 2, truth[3]])
    assert drawn[0, :4] == pytest.approx([float(each) for each in again.compute().values()])
    assert drawn[0, 4] == 0.0 and np.isnan(drawn[1, 4]), "of no sample there is no score"
    assert values_of([scores, scores], 3).shape == (2, 5)
    mean = means([scores, scores], 3)[0]
    assert mean.low <= mean.value <= mean.high


def test_the_quantiles_of_student() -> None:
    """Table of Student's t, two-sided 95 %."""
    for freedom, expected in ((1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)):
        assert student(freedom, 0.975) == pytest.approx(expected, rel=1e-3)
    found = between_seeds([0.5, 0.7])
    assert (found.value, found.low) == (pytest.approx(0.6), pytest.approx(0.6 - 12.706 * 0.1, rel=1e-3))


def test_holm_as_published() -> None:
    """Holm 1979: the smallest times m, the next times m - 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []

"""Laws of ranking: expected values by hand, or by trying every order of what is tied."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from lightning_mllm.evaluation.bootstrap import metric_intervals
from lightning_mllm.evaluation.metrics import Choice, Ranking, ReciprocalRank, RocAuc
from lightning_mllm.evaluation.metrics.ranking import RankMetric


def ranked(**likelihoods: float) -> Ranking:
    return Ranking(tuple(likelihoods), tuple(likelihoods.values()))


def values(metric: RankMetric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def yes_no(odds: list[float], labels: list[str]) -> RocAuc:
    metric = RocAuc()
    metric.update([ranked(no=-1.0, yes=each - 1.0) for each in odds], [(label,) for label in labels])
    return metric


def area(odds: list[float], labels: list[str]) -> float:
    """How often a yes has higher odds than a no, by comparing all pairs."""
    yes = [each for each, label in zip(odds, labels, strict=True) if label == "yes"]
    no = [each for each, label in zip(odds, labels, strict=True) if label == "no"]
    return sum((a > b) + (a == b) / 2 for a in yes for b in no) / (len(yes) * len(no))


def test_the_likeliest_candidate_is_the_choice() -> None:
    metric = Choice()
    metric.update(
        [ranked(a=-3.0, b=-0.5, c=-9.0), ranked(a=-1.0, b=-2.0), ranked(a=-2.0, b=-1.0)], [("b",), ("b",), ("a", "b")]
    )
    assert metric.per_item() == [1, 0, 1]
    assert values(metric) == pytest.approx({"choice_accuracy": 2 / 3})
    assert [ranking.best for ranking in metric.answers] == ["b", "a", "b"]


@pytest.mark.parametrize("right", ["a", "b", "c", "d"])
def test_who_tells_nothing_apart_scores_chance_wherever_the_answer_stands(right: str) -> None:
    same = ranked(a=-1.0, b=-1.0, c=-1.0, d=-1.0)
    choice, ranks = Choice(), ReciprocalRank()
    for metric in (choice, ranks):
        metric.update([same], [(right,)])
    assert choice.per_item() == [0.25]
    expected = {
        "mrr": (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4,
        "recall_1": 0.25,
        "recall_5": 1,
        "recall_10": 1,
        "mean_rank": 2.5,
    }
    assert values(ranks) == pytest.approx(expected)


def test_ranks_by_hand() -> None:
    metric = ReciprocalRank()
    hundred = Ranking(tuple(f"c{i}" for i in range(100)), tuple(-float(i) for i in range(100)))
    metric.update([hundred] * 4, [("c0",), ("c3",), ("c9",), ("c99",)])
    assert metric.per_item() == pytest.approx([1, 1 / 4, 1 / 10, 1 / 100])
    expected = {
        "mrr": 1.36 / 4,
        "recall_1": 0.25,
        "recall_5": 0.5,
        "recall_10": 0.75,
        "mean_rank": (1 + 4 + 10 + 100) / 4,
    }
    assert values(metric) == pytest.approx(expected)


@pytest.mark.parametrize("references", [("b",), ("b", "d"), ("a", "c"), ("f",), ("e", "f", "unlisted")])
def test_ties_score_as_random_orders_do_on_average(references: tuple[str, ...]) -> None:
    ranking = ranked(a=-1.0, b=-2.0, c=-2.0, d=-2.0, e=-3.0, f=-3.0)
    metric, choice = ReciprocalRank(), Choice()
    metric.update([ranking], [references])
    choice.update([ranking], [references])
    likelihood = dict(zip(ranking.candidates, ranking.likelihoods, strict=True))
    ranks = []
    for order in permutations(ranking.candidates):
        sorted_order = sorted(order, key=lambda text: -likelihood[text])
        ranks.append(1 + min(sorted_order.index(text) for text in references if text in likelihood))
    found = np.array(ranks)
    # Several references: the likeliest counts, so a right one before it is no rank lost.
    assert values(metric) == pytest.approx(
        {
            "mrr": (1 / found).mean(),
            "recall_1": (found <= 1).mean(),
            "recall_5": (found <= 5).mean(),
            "recall_10": 1.0,
            "mean_rank": found.mean(),
        }
    )
    assert choice.per_item() == pytest.approx([(found <= 1).mean()])


def test_a_text_listed_twice_is_one_candidate() -> None:
    metric = ReciprocalRank()
    metric.update([Ranking(("x", "yes", "yes", "x"), (-1.0, -2.0, -2.0, -1.0))], [("yes",)])
    assert values(metric)["mean_rank"] == 2


def test_the_area_is_that_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    odds = np.round(random.normal(size=60), 1).tolist()  # many ties
    labels = [str(label) for label in np.where(random.random(60) < 0.3, "yes", "no")]
    assert len(set(odds)) < 45
    assert values(yes_no(odds, labels))["auc"] == pytest.approx(area(odds, labels))


def test_the_area_at_its_ends_and_of_one_class() -> None:
    assert values(yes_no([1, 2, 3, 4], ["no", "no", "yes", "yes"])) == {"auc": 1}
    assert values(yes_no([4, 3, 2, 1], ["no", "no", "yes", "yes"])) == {"auc": 0}
    assert values(yes_no([0, 0, 0, 0], ["no", "yes", "yes", "no"])) == {"auc": 0.5}
    assert values(yes_no([1, 2], ["yes", "yes"])) == {"auc": 0.5}


def test_sure_answers_keep_their_order() -> None:
    """The softmax of log-odds above 40 is 1 in floating point; the area still sees which is surer."""
    assert values(yes_no([100, 101, 200, 201], ["no", "no", "yes", "yes"])) == {"auc": 1}


def test_the_interval_of_the_area_comes_from_drawing_samples_anew() -> None:
    random = np.random.default_rng(1)
    labels = ["yes"] * 30 + ["no"] * 50
    odds = np.round(random.normal(size=80) + 0.8 * np.array([label == "yes" for label in labels]), 1).tolist()
    found = metric_intervals(yes_no(odds, labels), samples=200)["auc"]
    random, drawn = np.random.default_rng(0), []
    for _ in range(200):
        rows = random.integers(80, size=80)
        drawn.append(area([odds[i] for i in rows], [labels[i] for i in rows]))
    assert found.value == pytest.approx(area(odds, labels))
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    assert found.low < found.value < found.high


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="found 1 likelihoods of 2 candidates"):
        Ranking(("a", "b"), (-1.0,))
    with pytest.raises(ValueError, match="expected finite"):
        ranked(a=-1.0, b=float("nan"))
    with pytest.raises(ValueError, match=r"found the references \['c'\], expected one of the 2 candidates"):
        Choice().update([ranked(a=-1.0, b=-2.0)], [("c",)])
    with pytest.raises(ValueError, match=r"auc: found the candidates \['maybe', 'no'\]"):
        RocAuc().update([ranked(maybe=-1.0, no=-2.0)], [("no",)])
    with pytest.raises(ValueError, match=r"auc: found the references \['hateful'\]"):
        RocAuc().update([ranked(yes=-1.0, no=-2.0)], [("hateful",)])

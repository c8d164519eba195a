from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics import Asked, MmeScores
from lightning_mllm.evaluation.metrics.mme import COGNITION, PERCEPTION, read_yes_or_no
from tests.evaluation.metrics.published import published

PUBLISHED = published("mme")


def scored(items: list[dict[str, str]]) -> dict[str, float]:
    metric = MmeScores()
    asked = [Asked(f"{n}", "", each["kind"], (each["picture"],)) for n, each in enumerate(items)]
    metric.update([each["answer"] for each in items], [(each["reference"],) for each in items], asked)
    return {name: float(value) for name, value in metric.compute().items()}


def test_scores_are_those_of_the_released_tool() -> None:
    found = scored(PUBLISHED["items"])
    assert found["mme_perception"] == pytest.approx(PUBLISHED["perception"], abs=1e-9)
    assert found["mme_cognition"] == pytest.approx(PUBLISHED["cognition"], abs=1e-9)
    assert found["mme_total"] == pytest.approx(PUBLISHED["perception"] + PUBLISHED["cognition"], abs=1e-9)
    for subtask, expected in PUBLISHED["subtasks"].items():
        own = [each for each in PUBLISHED["items"] if each["kind"] == subtask]
        assert scored(own)[MmeScores.by_kind] == pytest.approx(expected, abs=1e-9), subtask


def test_all_right_is_2000_and_800() -> None:
    items = [
        {"kind": kind, "picture": f"{kind}.png", "reference": label, "answer": label}
        for kind in (*PERCEPTION, *COGNITION)
        for label in ("yes", "no")
    ]
    assert scored(items) == {"mme_perception": 2000, "mme_cognition": 800, "mme_total": 2800}
    half = scored([{**each, "answer": "yes"} for each in items])
    assert half == {"mme_perception": 500, "mme_cognition": 200, "mme_total": 700}, "accuracy 1/2, accuracy+ 0"


@pytest.mark.parametrize(
    ("answer", "read"),
    [("Yes, it is", "yes"), ("I say yes", "other"), ("Nobody", "no"), ("not so", "no"), ("", "other"), ("YES", "yes")],
)
def test_four_characters_are_read(answer: str, read: str) -> None:
    assert read_yes_or_no(answer) == read


def test_what_cannot_be_scored_is_told_before() -> None:
    pair = [Asked("1", "", "count", ("a.png",)), Asked("2", "", "count", ("a.png",))]
    MmeScores().check_questions(pair)
    with pytest.raises(ValueError, match=r"mme: found 1 questions of count about b.png, expected 2, .* a limit cuts"):
        MmeScores().check_questions([*pair, Asked("3", "", "count", ("b.png",))])
    with pytest.raises(ValueError, match="mme: found the subtask 'colour', expected one of existence, "):
        MmeScores().check_questions([Asked("1", "", "colour", ("a.png",))])
    with pytest.raises(ValueError, match=r"mme: found the references \['Yes'\], expected one"):
        MmeScores().update(["yes"], [("Yes",)])

from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics.pope import PopeScores, says_yes
from tests.evaluation.metrics.published import published

PUBLISHED = published("pope")


def test_reading_and_scores_agree() -> None:
    metric = PopeScores()
    for item in PUBLISHED["items"]:
        assert says_yes(item["answer"]) == item["says_yes"], item["answer"]
        metric.update([item["answer"]], [(item["reference"],)])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == pytest.approx(PUBLISHED["scores"], abs=1e-12)


def test_a_model_that_never_says_yes_scores_zero_instead_of_stopping() -> None:
    metric = PopeScores()
    metric.update(["no", "no"], [("yes",), ("no",)])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == {
        "pope_f1": 0,
        "pope_accuracy": 0.5,
        "pope_precision": 0,
        "pope_recall": 0,
        "pope_yes_ratio": 0,
    }


@pytest.mark.parametrize("references", [("maybe",), ("yes", "no"), ()])
def test_labels_are_yes_or_no(references: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected one, 'yes' or 'no'"):
        PopeScores().update(["yes"], [references])

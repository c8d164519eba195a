from __future__ import annotations

import pytest

from lightning_mllm.evaluation.metrics import RelaxedAccuracy


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("105", "100", 1.0),  # exactly a twentieth
        ("105.1", "100", 0.0),
        ("95", "100", 1.0),
        ("94.9", "100", 0.0),
        ("-105", "-100", 1.0),
        ("-100", "100", 0.0),
        ("21%", "20%", 1.0),
        ("0.2", "20%", 1.0),  # a percentage is hundredths
        ("20", "20%", 0.0),
        (" 7.0 ", "7", 1.0),
        ("0", "0", 1.0),
        ("0.0", "0", 0.0),  # compared as texts
        ("Light Blue", "light blue", 1.0),
        ("blue", "light blue", 0.0),
        ("two", "2", 0.0),
        ("1,000", "1000", 0.0),  # no separator is read
        ("", "5", 0.0),
    ],
)
def test_by_hand(answer: str, reference: str, right: float) -> None:
    metric = RelaxedAccuracy()
    metric.update([answer], [[reference]])
    assert metric.compute()["relaxed_accuracy"].item() == right


def test_it_is_a_mean_and_any_reference_may_be_met() -> None:
    metric = RelaxedAccuracy()
    metric.update(["10", "red", "9"], [["12", "10.2"], ["blue"], ["9"]])
    assert metric.per_item() == [1.0, 0.0, 1.0] and metric.compute()["relaxed_accuracy"].item() == pytest.approx(2 / 3)

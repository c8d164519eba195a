from __future__ import annotations

from lightning_mllm.evaluation.metrics import AnswerWords


def test_words_are_counted_and_not_judged() -> None:
    metric = AnswerWords()
    metric.update(["a red  ball", ""], [("x",), ("y",)])
    assert metric.per_item() == [3, 0] and float(metric.compute()["answer_words"]) == 1.5
    assert AnswerWords.higher_is_better is None

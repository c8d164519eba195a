from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_mllm.contracts import Evaluation
from lightning_mllm.evaluation.metrics import DocumentLoss, Perplexity
from lightning_mllm.evaluation.text_scores import TextScores
from tests.evaluation.test_scores import a_batch

SET = Evaluation(task="perplexity", part="web")
TOKENS = [3, 50, 7, 20]
LOSSES = [2.0 * count if count < 10 else 0.5 * count for count in TOKENS]


def scored(chunks: list[list[int]]) -> TextScores:
    scores = TextScores(SET)
    for ids in chunks:
        batch = a_batch(ids, [0] * len(ids))
        scores.update(batch, torch.tensor([LOSSES[i] for i in ids]), torch.tensor([TOKENS[i] for i in ids]))
    return scores


def test_perplexity_is_of_tokens_and_its_interval_of_documents() -> None:
    scores = scored([[0, 1], [2, 3, 0]])
    found = scores.compute()["perplexity_web"]
    assert found.value == pytest.approx(math.exp(sum(LOSSES) / sum(TOKENS))), "no mean of means"
    assert found.low < found.value < found.high
    assert found.low == pytest.approx(math.exp(0.5)) and found.high <= math.exp(2.0), "of the documents' own"
    assert scores.num_answers == 4 and scores.examples == []
    assert scored([[3, 2], [1, 0]]).compute() == scores.compute(), "in any order, and each once"


def test_of_one_document_the_interval_is_its_value() -> None:
    metric = Perplexity()
    metric.update([DocumentLoss(30.0, 10)], [()])
    assert float(metric.compute()["perplexity"]) == pytest.approx(math.exp(3))
    assert not metric.higher_is_better and not metric.is_mean


@pytest.mark.parametrize(
    ("images", "loss", "count", "sentence"),
    [
        ([0], 1.0, 0, "sample q1: found an image or nothing to predict, expected plain text"),
        ([1], 1.0, 4, "sample q1: found an image or nothing to predict, expected plain text"),
        ([0], math.nan, 4, "sample q1: found a loss of nan, expected a finite one"),
    ],
)
def test_what_is_no_document(images: list[int], loss: float, count: int, sentence: str) -> None:
    arguments: list[Any] = [a_batch([1], images), torch.tensor([loss]), torch.tensor([count])]
    with pytest.raises(ValueError, match=sentence):
        TextScores(SET).update(*arguments)


def test_two_documents_of_one_id_are_refused_and_one_read_twice_counts_once() -> None:
    batch = a_batch([0, 0], [0, 0])
    batch.indices = []
    scores = TextScores(SET)
    scores.update(batch, torch.tensor([3.0, 3.0]), torch.tensor([4, 4]))
    assert scores.compute() and scores.num_answers == 1
    batch.labels = batch.labels.clone()
    batch.labels[1, 0] = 7
    with pytest.raises(
        ValueError, match=r"sample q0: found in the place of q0 in .* 'perplexity_web', with another text"
    ):
        TextScores(SET).update(batch, torch.tensor([3.0, 3.0]), torch.tensor([4, 4]))

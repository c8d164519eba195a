"""The sums of an optimizer step's micro-batches, and what they are refused for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_mllm.contracts import Output, Term
from lightning_mllm.training.reduction import step_weights
from lightning_mllm.training.step_sums import StepSums, Totals
from tests.training.test_step_row import rows


def test_micro_batches_add_up() -> None:
    first, second = rows("a", "b"), rows("b")
    both = step_weights([first, second], "token_mean", None, torch.device("cpu"))
    sums = StepSums()
    for batch, weights in zip((first, second), both, strict=True):
        losses = weights.tokens * torch.full((len(batch.ids),), 3.0, requires_grad=True)
        tokens = weights.tokens + (batch is second)
        output = Output(terms={"language": Term(losses=losses, tokens=tokens)})
        sums.add(batch, output, weights, weights.values(output), ["a", "b"])
    found = sums.totals()
    learned = [int(weights.tokens.sum()) for weights in both]
    assert found.losses == {"train/loss": pytest.approx(3)}
    assert found.sources["train/loss/a"] == pytest.approx(3) and set(found.sources) == {"train/loss/a", "train/loss/b"}
    assert found.tokens == sum(learned)
    assert found.read == sum(int((batch.segments > 0).sum()) for batch in (first, second)) > found.tokens
    assert (found.wrong, found.images) == (1, first.num_images + second.num_images)


def test_a_term_is_named_where_there_are_several() -> None:
    batch = rows("a")
    (weights,) = step_weights([batch], "token_mean", None, torch.device("cpu"))
    language = Term(losses=torch.ones(1, requires_grad=True), tokens=weights.tokens)
    half = Term(losses=torch.ones(1, dtype=torch.bfloat16, requires_grad=True), weight=0.5)
    output = Output(terms={"language": language, "half": half})
    sums = StepSums()
    sums.add(batch, output, weights, weights.values(output), [])
    found = sums.totals()
    mean = 1 / float(weights.tokens.sum())
    expected = {"train/loss": mean + 0.5, "train/language": mean, "train/half": 1.0}
    assert found.losses == {name: pytest.approx(value) for name, value in expected.items()} and not found.sources


def test_a_step_that_learns_nothing_is_refused() -> None:
    found = Totals(losses={"train/loss": 0.0}, sources={}, tokens=4.0, read=9.0, wrong=0.0, images=0.0)
    found.check("Toy", 3)
    with pytest.raises(ValueError, match="optimizer step 3: found no supervised item"):
        replace(found, tokens=0.0).check("Toy", 3)
    with pytest.raises(ValueError, match=r"Toy\.forward: found terms .* in 2 rows of step 3"):
        replace(found, wrong=2.0).check("Toy", 3)

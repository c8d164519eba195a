"""The loss of each source and the rate of each pattern, beside the mean loss of a step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_mllm.contracts import Batch, Output, Term
from lightning_mllm.training.step_row import TEXT, losses_of_sources, means_of_sources, rates, reduced, sources_of
from tests.toy import ToyProcessor
from tests.training.data import Squares


def test_sources_are_named_where_there_are_several() -> None:
    assert sources_of(SimpleNamespace(train={"a": 1, "b": 2}, text=None)) == ["a", "b"]
    assert sources_of(SimpleNamespace(train={"a": 1}, text=object())) == ["a", TEXT]
    assert sources_of(SimpleNamespace(train={"a": 1}, text=None)) == sources_of(None) == []


def rows(*sources: str) -> Batch:
    """A batch with a row of each of these sources."""
    processor, source = ToyProcessor(), Squares(samples=len(sources))
    samples = [source.sample(index, torch.Generator()) for index in range(len(sources))]
    return processor.collate([processor.encode(each) for each in samples]).noted(sources=list(sources))


def test_each_source_has_the_mean_of_its_own_items() -> None:
    batch = rows("a", TEXT, "a")
    losses = torch.tensor([2.0, 3.0, 4.0], requires_grad=True)
    output = Output(terms={"language": Term(losses=losses, tokens=torch.tensor([1, 2, 5]))})
    sums = losses_of_sources(["a", TEXT, "absent"], batch, output)
    twice = {name: pair + sums[name] for name, pair in sums.items()}
    for found in (sums, twice):
        totals = reduced({**found, "losses": torch.tensor([1.0], dtype=torch.float64)}, [7])
        assert totals["losses"] == [1.0] and totals["host"] == [7.0]
        assert means_of_sources(totals) == {"train/loss/a": pytest.approx(6 / 6), "train/loss/text": pytest.approx(1.5)}
    nameless = losses_of_sources(["a", "b"], replace(batch, sources=[]), output)
    assert set(nameless) == {"source a", "source b"} and means_of_sources(reduced(nameless)) == {}
    assert losses_of_sources([], batch, output) == {}


def test_rates_of_patterns_that_differ() -> None:
    def groups(*given: tuple[str, float]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"name": name, "lr": lr, "params": [nn.Parameter(torch.zeros(1))]} for name, lr in given], lr=0.1
        )

    assert rates(groups(("a", 0.1), ("a (not decayed)", 0.1), ("b", 0.1))) == {"train/lr": 0.1}
    assert rates(groups(("a", 0.1), ("a (not decayed)", 0.1), ("b", 0.3))) == {
        "train/lr": 0.3,
        "train/lr/a": 0.1,
        "train/lr/b": 0.3,
    }

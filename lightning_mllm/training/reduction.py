"""What each row counts for in the loss of an optimizer step, known before the first of its backward passes.

    token_mean          sum of all tokens' losses / tokens of the global batch
    micro_batch_mean    each `size` rows, in the order of the data: their tokens' mean; then the mean of these means
    sample_mean         each row: its tokens' mean; then the mean of these means

A loss is a weighted sum of rows; a reduction is a rule for the weights. The rule sees the tokens of every row of the
global batch, which ranks tell one another once a step, so it gives the same however the batch is cut:

    rank 0   micro-batch 0 | micro-batch 1 | ...      tokens of each row, from the host's batches
    rank 1   micro-batch 0 | micro-batch 1 | ...
             `- summed over ranks, each row at its place in the data -'  ->  weights of all  ->  each takes its own

Rows are samples: those of one packed row are told apart. Ranks may have different numbers of them (`Batch.numbers`).

Legend: R rows of the global batch, B of one micro-batch, W ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from lightning_mllm.collectives import all_reduce, rank_and_world
from lightning_mllm.contracts import Batch, Output, Term
from lightning_mllm.training.stage import Reduction


def row_weights(tokens: Num[Tensor, " R"], reduction: Reduction, size: int | None = None) -> Float[Tensor, " R"]:
    """What the loss of each row, summed over its tokens, is multiplied by, in float64.

    A row without tokens has a loss of 0: it is no sample of `sample_mean`, and an empty micro-batch has a mean of 0.

    Args:
        tokens: Of each row of the global batch, in the order of the data.
        reduction: As in the module's docstring.
        size: Rows of a micro-batch of `micro_batch_mean`.

    Raises:
        ValueError: The rows are not whole micro-batches.
    """
    counts = tokens.double()
    if reduction == "token_mean":
        return torch.ones_like(counts) / counts.sum().clamp(min=1)
    if reduction == "sample_mean":
        return (counts > 0) / counts.clamp(min=1) / (counts > 0).sum().clamp(min=1)
    assert size is not None
    if len(counts) % size:
        raise ValueError(
            f"stage.per_device_batch: found {size}, expected a divisor of the {len(counts)} rows of a step"
        )
    groups = counts.view(-1, size)
    return (1 / groups.sum(1, keepdim=True).clamp(min=1) / len(groups)).expand_as(groups).reshape(-1)


@dataclass
class MicroBatchWeights:
    """What a rank knows of one micro-batch before it sees it."""

    tokens: Int[Tensor, " B"]
    """Supervised tokens of each row."""
    of_tokens: Float[Tensor, " B"]
    """Weight of each row in terms that count tokens."""
    of_rows: Float[Tensor, " B"]
    """Weight of each row in terms whose items are the rows."""

    def of(self, term: Term) -> Float[Tensor, " B"]:
        """Weight of each row in a term, in the dtype of its losses."""
        return (self.of_rows if term.tokens is None else self.of_tokens).to(term.losses.dtype)

    def values(self, output: Output) -> dict[str, Float[Tensor, ""]]:
        """What the micro-batch adds to the loss of the step ("loss") and to the mean of each of its terms.

        Raises:
            ValueError: A term has not a loss of each row.
        """
        for name, term in output.terms.items():
            for found in (term.losses, term.losses if term.tokens is None else term.tokens):
                if found.shape != self.tokens.shape:
                    raise ValueError(
                        f"forward: found the shape {tuple(found.shape)} in the term {name!r}, expected a value of each"
                        f" of the {len(self.tokens)} rows"
                    )
        terms = {name: (self.of(term) * term.losses).sum() for name, term in output.terms.items()}
        # A term of weight 0 that has a gradient gives one of 0, so that no rank waits for a parameter.
        learned = [term.weight * terms[name] for name, term in output.terms.items() if terms[name].requires_grad]
        learned = learned or [term.weight * terms[name] for name, term in output.terms.items() if term.weight]
        return {"loss": learned[0] if len(learned) == 1 else torch.stack(learned).sum(), **terms}

    def wrong(self, output: Output) -> Int[Tensor, ""]:
        """Rows of which the net counts other tokens than their labels have."""
        counts = [term.tokens for term in output.terms.values() if term.tokens is not None]
        return torch.stack([self.tokens, *counts]).ne(self.tokens).sum()


def step_weights(
    batches: Sequence[Batch], reduction: Reduction, size: int | None, device: torch.device
) -> list[MicroBatchWeights]:
    """The weights of all micro-batches of this rank in an optimizer step; every rank calls this together.

    Args:
        batches: The micro-batches; without `Batch.numbers` those of one place have equally many rows on all ranks, and
            the rows of rank 0, of rank 1, ... follow one another in the data.
        reduction: How rows are weighed.
        size: As in `row_weights`; rows with a mean of their own (`Batch.own_mean`) are one micro-batch of it.
        device: Where ranks exchange tensors, and where the weights are needed.

    Raises:
        ValueError: As `row_weights`.
    """
    rank, world = rank_and_world()
    counts = [batch.layout.supervised.counts for batch in batches]
    found: dict[int, MicroBatchWeights] = {}
    for mean in dict.fromkeys(batch.own_mean for batch in batches):
        chosen = [number for number, batch in enumerate(batches) if batch.own_mean == mean]
        places, total = _places([batches[number] for number in chosen], rank, world)
        own = torch.cat([counts[number] for number in chosen])
        everyone, index = own.to(device, non_blocking=True), slice(None)
        if world > 1 or places != list(range(total)):
            index = torch.tensor(places, device=own.device)
            everyone = all_reduce(own.new_zeros(total).index_copy(0, index, own).to(device, non_blocking=True))
            index = index.to(device, non_blocking=True)
        weights = row_weights(everyone, reduction, size if mean is None else total)
        factor = 1.0 if mean is None else mean
        sizes = [len(batches[number].ids) for number in chosen]
        parts = (weights[index] * factor).split(sizes), everyone[index].split(sizes)
        for number, of_tokens, tokens in zip(chosen, *parts, strict=True):
            of_rows = torch.full_like(of_tokens, factor / total)
            found[number] = MicroBatchWeights(tokens=tokens, of_tokens=of_tokens, of_rows=of_rows)
    return [found[number] for number in range(len(batches))]


def _places(batches: Sequence[Batch], rank: int, world: int) -> tuple[list[int], int]:
    """Of each row of micro-batches that share a mean its place in the data; and how many rows all ranks have."""
    if batches[0].numbers:
        return [number for batch in batches for number in batch.numbers], batches[0].together
    places, before = list[int](), 0
    for batch in batches:
        first = before + rank * len(batch.ids)
        places += range(first, first + len(batch.ids))
        before += world * len(batch.ids)
    return places, before


def held_out_loss(output: Output) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """The loss of each row and of how many items it is the sum: the supervised tokens where the loss has one term.

    Several terms are added as each row's means, times their weights; a row is one item then.
    """
    terms = [term for term in output.terms.values() if term.weight]
    if len(terms) == 1 and terms[0].tokens is not None:
        return terms[0].weight * terms[0].losses, terms[0].tokens
    means = [term.losses if term.tokens is None else term.losses / term.tokens.clamp(min=1) for term in terms]
    total = torch.stack([term.weight * mean for term, mean in zip(terms, means, strict=True)]).sum(0)
    return total, torch.ones_like(total, dtype=torch.long)

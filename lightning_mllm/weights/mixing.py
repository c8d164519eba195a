"""Weighted sums of weights, tensor by tensor.

mixed = first + sum of weight * (other - first)       in float32; all weights together are 1

a mix             {a: 0.7, b: 0.3}                              of domains: SPHINX (arXiv 2311.07575, sec. 3.1)
task arithmetic   base + 0.7 (a - base) + 0.2 (b - base)        arXiv 2212.04089
                  = {base: 0.1, a: 0.7, b: 0.2}

A source that alone has a weight is what comes out, to the bit, and so is every number in which all sources agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from lightning_mllm.weights.safetensors_writer import Layout

PIECE = 2**20
"""Numbers that are read of each source and mixed at once: beside them there are a few buffers of 4 MiB."""


def coefficients(weights: Mapping[str, float], base: str | None = None, *, where: str) -> dict[str, float]:
    """The weight of every source, which together are 1.

    Args:
        weights: Source -> its weight; without a base from 0 to 1, with one any number.
        base: The source from which the others' differences are taken; it comes first.
        where: What stated them, for errors.

    Raises:
        ValueError: The weights are out of range, or the base is one of the sources.
    """
    if base is None:
        if not abs(sum(weights.values()) - 1) <= 1e-6 or min(weights.values()) < 0:
            raise ValueError(f"{where}: found the weights {dict(weights)}, expected weights from 0 to 1 that sum to 1")
        return dict(weights)
    if base in weights:
        raise ValueError(f"{where}: found the base {base!r} among the sources {list(weights)}, expected others there")
    if not all(map(math.isfinite, weights.values())):
        raise ValueError(f"{where}: found the weights {dict(weights)}, expected finite numbers")
    return {base: round(1 - sum(weights.values()), 12), **weights}


class Mixture(Mapping[str, Tensor]):
    """The sum of sources under their names, each tensor read and mixed when it is asked for.

    Contract: of every source one tensor is open at a time, and of that a piece is read; sources without a weight are
    asked for their shapes at most.

    Args:
        sources: Source -> its tensors by name.
        weights: Source -> its weight, together 1.

    Raises:
        ValueError: The sources have other names than one another.
    """

    def __init__(self, sources: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float]) -> None:
        assert set(sources) == set(weights) and abs(sum(weights.values()) - 1) <= 1e-6, weights
        self.sources = dict(sources)
        self.first = next(iter(self.sources))
        self.weights = {source: weights[source] for source in sources if weights[source]}
        names = set(self.sources[self.first])
        for source, tensors in self.sources.items():
            if odd := sorted(names ^ set(tensors)):
                places = [f"{name!r} is only in {self.first if name in names else source!r}" for name in odd[:3]]
                more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
                raise ValueError(
                    f"{self.first!r} and {source!r} differ in {len(odd)} tensors ({', '.join(places)}{more}),"
                    " expected the same names where sources are mixed"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources[self.first])

    def __len__(self) -> int:
        return len(self.sources[self.first])

    def __getitem__(self, name: str) -> Tensor:
        """The mixed tensor in float32 or better; that of a source which alone has a weight, as it is.

        Raises:
            ValueError: The sources' tensors have other shapes than one another, or whole numbers that differ.
        """
        first, *others = self.weights
        start = self.sources[first][name]
        if not others:
            return start
        precise = torch.promote_types(start.dtype, torch.float32) if start.is_floating_point() else start.dtype
        mixed, low = torch.empty(start.shape, dtype=precise), 0
        for piece in self._pieces(name, precise=True):
            mixed.view(-1)[low : low + len(piece)] = piece
            low += len(piece)
        return mixed

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The mixed tensor from its first number to its last, in the dtype that holds all of the sources' own.

        Raises:
            ValueError: As `mixture[name]`.
        """
        return self._pieces(name, precise=False)

    def layout(self) -> Layout:
        """Dtype and shape of every tensor that `pieces` gives, in order; nothing is read of sources that are mapped.

        Raises:
            ValueError: Shapes differ.
        """
        wrong: list[str] = []
        found = {name: self._entry(name, wrong) for name in self}
        if wrong:
            raise ValueError(wrong[0] + (f" ({len(wrong)} such tensors)" if len(wrong) > 1 else ""))
        return found

    def _entry(self, name: str, wrong: list[str]) -> tuple[torch.dtype, torch.Size]:
        tensors = {source: each[name] for source, each in self.sources.items()}
        if sentence := self._odd_shape(name, tensors):
            wrong.append(sentence)
        return _common([tensors[source] for source in self.weights]), tensors[self.first].shape

    def _odd_shape(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        first, expected = next((source, tuple(tensor.shape)) for source, tensor in tensors.items())
        for source, tensor in tensors.items():
            if (found := tuple(tensor.shape)) != expected:
                return f"{name!r} has shape {found} in {source!r}, expected {expected} as in {first!r}"
        return ""

    def _pieces(self, name: str, *, precise: bool) -> Iterator[Tensor]:
        total = self.sources[self.first][name].numel()
        for low in range(0, total, PIECE):
            yield self._piece(name, slice(low, low + PIECE), precise)

    def _piece(self, name: str, part: slice, precise: bool) -> Tensor:
        # Asked for anew: of a mapped file, what was read stays in memory as long as its tensor lives.
        tensors = {source: self.sources[source][name] for source in self.weights}
        if sentence := self._odd_shape(name, tensors):
            raise ValueError(sentence)
        dtype = _common(list(tensors.values()))
        (first, start), *others = ((source, tensor.reshape(-1)[part]) for source, tensor in tensors.items())
        if not others:
            return start
        if not dtype.is_floating_point:
            for source, tensor in others:
                if not torch.equal(tensor, start):
                    raise ValueError(
                        f"{name!r} holds whole numbers that differ in {first!r} and {source!r}, expected the same"
                    )
            return start
        exact = torch.promote_types(dtype, torch.float32)
        start = start.to(exact)
        mixed = start.clone()
        for source, tensor in others:
            mixed.add_(torch.sub(tensor, start), alpha=self.weights[source])
        return mixed if precise else mixed.to(dtype)


def _common(tensors: Sequence[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))

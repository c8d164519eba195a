"""Plain text in rows of so many tokens: which row holds which documents is a function of the seed and the position.

All documents in the order of an epoch are one stream of bytes. A row begins every `stride` bytes, which is what its
tokens stand for on average, and is given twice as much text, so that it is always full:

    epoch   | document 7 ..... | document 2 .. | document 5 .................. | document 0 ....
    row 0    ========stride====----spare----
    row 1                      ========stride====----spare----

Where text is dense, a row leaves a little of it out; where it is not, a row takes a little of what the next one begins
with. A document longer than a row is continued in the next one, at the beginning of a word.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from rich.table import Table

from data_modules.mixture_sampler import index_type, seeded
from data_modules.processor import SampleProcessor
from data_modules.shared_array import shared_array
from data_modules.sources.plain_text import TextSource
from lightning_mllm.contracts import Documents, Sample

PROBES, PROBE = 64, 512
"""Documents whose tokens are counted to know how much text a row holds, and how many bytes of each."""
SPARE = 2
"""Times the stride."""


@dataclass(frozen=True, kw_only=True)
class TextShare:
    """Plain text that every optimizer step takes beside its other samples (SPHINX, arXiv 2311.07575, stage 1).

    Args:
        source: the documents.
        tokens: of one optimizer step, over all processes (65,536 in SPHINX).
        length: tokens of a row.
        weight: what the text's own mean loss counts for beside the mean of the samples, which is added; None: its rows
            are rows of the global batch, weighed with all others as `stage.reduction` says.

    Raises:
        ValueError: the tokens are not whole rows, or the weight is not above 0.
    """

    source: TextSource
    tokens: int
    length: int = 2048
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.length < 2 or self.tokens < 1 or self.tokens % self.length:
            raise ValueError(
                f"data.text.tokens: found {self.tokens} tokens in rows of {self.length}, expected a multiple of rows of"
                " 2 or more"
            )

        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"data.text.weight: found {self.weight}, expected a finite number above 0")

    @property
    def rows(self) -> int:
        """Of one optimizer step."""
        return self.tokens // self.length


class Part(NamedTuple):
    """Of a document, about bytes `begin` to `end`."""

    index: int
    begin: int
    end: int


class Row(NamedTuple):
    """Where the text of a row stands."""

    position: int
    parts: tuple[Part, ...]


class TextRows:
    """Rows of plain text without end; an epoch shows all documents in an order of its own.

    Args:
        source: the documents; is loaded.
        length: tokens of a row.
        seed: of the orders.
        processor: counts the tokens of some documents.

    Raises:
        ValueError: there is less text than fills a row.
    """

    def __init__(self, source: TextSource, length: int, seed: int, processor: SampleProcessor) -> None:
        source.load()
        self.source, self.length, self.seed = source, length, seed
        self.bytes_per_token = measured(source, processor)
        self.stride = max(1, round(length * self.bytes_per_token))
        self.total = int(source.sizes.sum())
        if self.total < self.stride:
            raise ValueError(
                f"{', '.join(source.files)}: found {self.total} bytes of text, expected at least {self.stride} for a"
                f" row of {length} tokens"
            )
        self._current: tuple[int, Int[np.ndarray, " N"], Int[np.ndarray, " N"]] | None = None

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self.total // self.stride

    def at(self, position: int) -> Row:
        """The row at a position counted over all epochs."""
        epoch, number = divmod(position, len(self))
        documents, ends = self._epoch(epoch)
        place, left = number * self.stride, min(SPARE * self.stride, self.total)
        turn = int(np.searchsorted(ends, place, side="right"))
        begin = place - (int(ends[turn - 1]) if turn else 0)
        parts: list[Part] = []
        while left:
            index = int(documents[turn % len(documents)])
            end = min(int(self.source.sizes[index]), begin + left)
            parts.append(Part(index, begin, end))
            left -= end - begin
            turn, begin = turn + 1, 0
        return Row(position, tuple(parts))

    def _epoch(self, epoch: int) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """The documents in their order, and where each ends in the stream."""
        if self._current is None or self._current[0] != epoch:
            self._current = None
            size, random = len(self.source), seeded(self.seed, "text", epoch)
            order = shared_array(
                lambda: f"{self._key}-{epoch}",
                size,
                lambda: torch.randperm(size, generator=random, dtype=index_type(size)).numpy(),
            )
            ends = shared_array(lambda: f"{self._key}-{epoch}-ends", size, lambda: np.cumsum(self.source.sizes[order]))
            self._current = epoch, order, ends
        return self._current[1:]

    @cached_property
    def _key(self) -> str:
        """A digest of all that the order depends on."""
        digest = hashlib.blake2b(repr(("text", self.seed)).encode(), digest_size=16)
        digest.update(self.source.sizes.tobytes())
        return digest.hexdigest()

    def sample(self, row: Row) -> Sample:
        """What a processor packs into the row."""
        texts = [self.source.part(*part) for part in row.parts]
        some = [(text, ends) for text, ends in texts if text]
        return Sample(
            id=f"row {row.position} from {self.source.name(row.parts[0].index)}",
            documents=Documents(
                texts=tuple(text for text, _ in some), length=self.length, continued=not (some and some[-1][1])
            ),
        )

    def table(self, steps: int, batch: int) -> Table:
        """What a stage takes of the text, `batch` rows in each of its optimizer steps."""
        table = Table("text", title=f"plain text, {steps} steps of {batch} rows of {self.length:,} tokens")
        for heading in ("documents", "rows", "epochs", "left out", "bytes a token"):
            table.add_column(heading, justify="right")
        epochs, skipped = f"{steps * batch / len(self):.2f}", f"{len(self.source.skipped):,}"
        counts = (f"{len(self.source):,}", f"{len(self):,}", epochs, skipped, f"{self.bytes_per_token:.2f}")
        table.add_row(", ".join(self.source.files), *counts)
        return table


def measured(source: TextSource, processor: SampleProcessor) -> float:
    """Bytes that a token stands for, over the beginnings of some documents; rounded to hundredths."""
    size = tokens = 0
    for index in sorted({k * len(source) // PROBES for k in range(PROBES)}):
        text, ends = source.part(index, 0, PROBE)
        documents = Documents(texts=(text,), continued=not ends)
        tokens += len(processor.encode(Sample(id=source.name(index), documents=documents)).tokens)
        size += len(text.encode("utf-8"))
    return round(max(size / tokens, 0.01), 2)

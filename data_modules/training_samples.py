"""Samples by their place in the order, encoded; those that cannot be are refused, or replaced by others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from torch.utils.data import Dataset

from data_modules.bad_samples import BadLimits, BadSample, identified
from data_modules.loader import Refusal, contained, named
from data_modules.mixture_sampler import SampleLocation, seeded
from data_modules.processor import SampleProcessor
from data_modules.sources.source import Source
from data_modules.text import Row, TextRows
from lightning_mllm.contracts import Encoded, OverlongError

Overlong = Literal["mask", "drop", "stop"]
"""What becomes of a sample that has more tokens than a row.

mask: What does not fit is left out of the row, and is not learned. A sample of which that would leave no answer, or a
    part of an image, is a bad one, as `bad_records` of its source says.
drop: The next sample of the source takes its place.
stop: It is an error.
"""
TEXT = "data.text"
"""What rows of plain text are called where samples name their source."""


class TrainingSamples(Dataset):
    """Encoded samples by location in the order; each draws from a generator of its own, whichever process makes it.

    Where a source says `bad_records: skip`, a sample that cannot be encoded (a truncated image) is replaced by the next
    one of the source that also has an image or has none. Which it is depends on the location alone; a note says so.

    Args:
        sources: by the names that locations have.
        processor: encodes samples.
        seed: of the generators.
        text: what rows of plain text are taken from.
        limits: how many samples of a source in a row may be bad, or too long.
        overlong: what becomes of samples that are too long for a row.

    Raises:
        ValueError: `overlong` is none of its values.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        processor: SampleProcessor,
        seed: int,
        text: TextRows | None = None,
        limits: BadLimits = BadLimits(),
        overlong: Overlong = "mask",
    ) -> None:
        self.sources, self.processor, self.seed, self.text = dict(sources), processor, seed, text
        self.limits, self.overlong = limits, overlong
        if overlong not in get_args(Overlong):
            raise ValueError(f"data.overlong: found {overlong!r}, expected one of {', '.join(get_args(Overlong))}")

    def __getitem__(self, location: SampleLocation | Row) -> Encoded | Refusal:
        if isinstance(location, Row):
            assert self.text is not None
            text = self.text
            return contained(
                lambda: self.processor.encode(text.sample(location)), lambda: f"row {location.position} of {TEXT}"
            )
        return contained(lambda: self._encoded(location), lambda: self._named(location))

    def _named(self, location: SampleLocation) -> str:
        where = self.sources[location.source].where(location.index) or f"sample {location.index}"
        return f"{where} of data.train.{location.source}"

    def place(self, location: SampleLocation | Row) -> dict[str, Any]:
        """Source, index, and file and record of what stands at a location, without reading it."""
        if isinstance(location, Row):
            return {"source": TEXT, "index": location.position, "where": ""}
        where = self.sources[location.source].where(location.index)
        return {"source": location.source, "index": location.index, "where": where}

    def _encoded(self, location: SampleLocation) -> Encoded:
        found: list[BadSample] = []
        for index in self._candidates(location):
            try:
                encoded = self._one(location, index)
            except ValueError as error:
                found.append(self._judged(location.source, index, error))
                if len(found) == self.limits.in_a_row:
                    break
            else:
                if not found:
                    return encoded
                note = found[0].note(self.sources[location.source].where(index), encoded.id)
                return replace(encoded, notes=(*encoded.notes, note))
        raise ValueError(
            f"data.train.{location.source}: found {len(found)} samples in a row that cannot be used"
            f" (data.bad_limits.in_a_row: {self.limits.in_a_row}), the first: {found[0].sentence}"
        )

    def _candidates(self, location: SampleLocation) -> Iterator[int]:
        """The sample itself and those that may take its place, in their order: of its kind, each once."""
        source = self.sources[location.source]
        seen = source.has_image(location.index)
        for step in range(len(source)):
            index = (location.index + step) % len(source)
            if source.has_image(index) is seen:
                yield index

    def _one(self, location: SampleLocation, index: int) -> Encoded:
        """Sample `index`, encoded; OverlongError for one that is too long and not to be cut."""
        generator = seeded(self.seed, "sample", location.epoch, location.source, index)
        sample = self.sources[location.source].sample(index, generator)
        encoded = self.processor.encode(sample, random=generator)
        notes: tuple[str, ...] = getattr(encoded, "notes", ())
        cut = next((note for note in notes if note.startswith("overlong: ")), None)
        if cut is None:
            return encoded
        if self.overlong != "mask":
            raise OverlongError(f"sample {sample.id!r}: {cut.removeprefix('overlong: ')}")
        return replace(encoded, notes=tuple("overlong" if note is cut else note for note in notes))

    def _judged(self, name: str, index: int, error: ValueError) -> BadSample:
        """What is to be said of a sample whose place another one takes.

        Raises:
            ValueError: it is not to be replaced.
        """
        source = self.sources[name]
        where = source.where(index)
        dropped = isinstance(error, OverlongError) and self.overlong != "mask"
        if dropped and self.overlong == "stop":
            raise ValueError(f"{named(where, error)} (data.overlong: stop)") from error
        if not dropped and source.bad_records == "refuse":
            raise named(where, error) from error
        kind = "dropped" if dropped else "replaced"
        return BadSample(kind=kind, source=name, index=index, where=where, **identified(str(error)))

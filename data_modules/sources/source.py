"""What every source of samples answers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int

from lightning_mllm.boxes import Frame
from lightning_mllm.contracts import Sample

BadRecords = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published data set that a source reads: a row of `mllm data list`."""

    title: str
    paper: str
    """arXiv number; the venue where there is none."""
    family: str
    """The templates that go with it (see templates.py); empty for data with instructions of their own."""
    tasks: tuple[str, ...]
    """What is scored: 'vqa', 'exact', 'caption', 'auc', 'mrr', ...; the first is what its samples say. Empty for data
    that is trained on alone: no score knows its task."""
    held_in: bool | None
    """Whether InstructBLIP (arXiv 2305.06500, sec. 2.1) trains on it, or only tests; None where it does neither."""
    files: tuple[str, ...]
    """As they are published."""


class Source(ABC):
    """A list of samples.

    Contract: `sample` depends on its arguments alone, never on global random state or on earlier calls.
    """

    published: ClassVar[tuple[Published, ...]] = ()
    """The data sets in the format that the class reads."""
    captions: ClassVar[bool] = False
    """Whether each sample is one image and one text about it."""
    bad_records: BadRecords = "refuse"
    """Whether a sample that turns out to be bad stops training or is replaced by the next one."""
    frame: Frame | None = None
    """What coordinates in its texts are shares of; None where it tells none."""
    changed: Mapping[str, int] = MappingProxyType({})
    """Of the records that are read otherwise than they are written: how, and how many."""

    @abstractmethod
    def load(self) -> None:
        """Reads and checks everything but the pixels; does nothing the second time.

        Raises:
            ValueError: names the file, the record (index or line, and id) and the rule that it breaks.
        """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """Sample `index`; whatever is random about it is drawn from `generator`."""

    @abstractmethod
    def length(self, index: int) -> int:
        """About how many words sample `index` has, without reading it."""

    @abstractmethod
    def has_image(self, index: int) -> bool:
        """Whether sample `index` has an image, without reading it."""

    def image_key(self, index: int) -> int | None:
        """A number of the images of sample `index`, from 0 and below 2**63, without reading it: samples that show the
        same files have the same one. None without images, and where it is not known."""
        return None

    def where(self, index: int) -> str:
        """File and record that sample `index` is read from, as error messages begin; empty where that is not known."""
        return ""

    def runs(self) -> Int[np.ndarray, " R"]:
        """How many samples after one another lie in one shard or row group, which is read at the cost of one."""
        return np.ones(len(self), dtype=np.int64)


class Wrapped(Source):
    """Another source's samples, each changed in some way; a subclass says how, in `sample`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.bad_records, self.frame = source.bad_records, source.frame

    def load(self) -> None:
        self.source.load()

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return self.source.length(index)

    def has_image(self, index: int) -> bool:
        return self.source.has_image(index)

    def image_key(self, index: int) -> int | None:
        return self.source.image_key(index)

    @property
    def skipped(self) -> list[str]:
        """One sentence for each record that the other source left out."""
        return getattr(self.source, "skipped", [])

    @property
    def changed(self) -> Mapping[str, int]:
        return self.source.changed

    def where(self, index: int) -> str:
        return self.source.where(index)

    def runs(self) -> Int[np.ndarray, " R"]:
        return self.source.runs()


def key_of_images(folder: str, names: Sequence[str]) -> int | None:
    """`Source.image_key` of images by their names in a folder; None of no images."""
    if not names:
        return None
    digest = hashlib.blake2b("\0".join((folder, *names)).encode("utf-8", "surrogatepass"), digest_size=7)
    return int.from_bytes(digest.digest(), "big")

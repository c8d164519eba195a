"""What the layers say to one another: samples in, batches through, outputs back.

Everything here is plain data over torch and the standard library, so that data modules, processors, networks and
exporters can share it without knowing one another.

Legend: B rows, K samples, T tokens a row, N views of I images, H and W pixels.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_mllm.layout import IGNORE as IGNORE
from lightning_mllm.layout import Layout as Layout
from lightning_mllm.layout import Supervised as Supervised
from lightning_mllm.layout import TokenKind as TokenKind
from lightning_mllm.layout import map_tensors
from lightning_mllm.layout import runs_of as runs_of
from lightning_mllm.stages import Evaluation as Evaluation
from lightning_mllm.stages import ParamGroup as ParamGroup
from lightning_mllm.stages import Stage as Stage
from lightning_mllm.stages import accumulation as accumulation

IMAGE_MARK, LITERAL_MARK = "<image>", "<\ufdd4image>"
"""Where an image stands in the text of a user turn; and the words `<image>` in one that shows images as well."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One utterance; `text` may hold `<image>` anywhere in a user turn."""

    role: Role
    text: str
    literal: bool = False
    """Whether `<image>` in the text is words, and no image."""
    learn: bool = True  # of an assistant turn


class OverlongError(ValueError):
    """A sample has more tokens than a row may have."""


class ImageRef(Protocol):
    """An image that has not been read yet."""

    @property
    def name(self) -> str:
        """How error messages call it."""
        ...

    def read(self, max_bytes: int) -> bytes:
        """The encoded bytes; raises ValueError, naming the image, if missing or larger than `max_bytes`."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """An image in a file."""

    path: Path
    size: tuple[int, int] | None = None
    """Width and height, in pixels, that annotations told in its coordinates are about; None where none are."""

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self, max_bytes: int) -> bytes:
        try:
            found = os.stat(self.path)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{self.path}: found no regular file, expected an image")
            if found.st_size > max_bytes:
                raise ValueError(f"{self.path}: found {found.st_size} bytes, expected at most {max_bytes}")
            with open(self.path, "rb") as file:
                return file.read(found.st_size)  # of /proc and of what grows meanwhile no more than was said
        except OSError as error:
            raise ValueError(f"{self.path}: cannot read the image ({error.strerror})") from error


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Plain texts, all to be learned, that share a row of tokens and do not attend to one another."""

    texts: tuple[str, ...]
    length: int | None = None
    """Tokens of the row; None for as many as the net reads."""
    continued: bool = False
    """Whether the last text goes on in another row, so that it does not end here."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One example as a data module gives it: text and unread images, no tensors."""

    id: str
    turns: tuple[Turn, ...] = ()
    documents: Documents | None = None
    """In place of turns and images: text for a language model."""
    images: tuple[ImageRef, ...] = ()
    references: tuple[str, ...] = ()
    """The accepted answers or reference captions; only evaluation reads them."""
    candidates: tuple[str, ...] = ()
    """A closed set of answers to choose from: they are ranked by the language model's loss instead of written."""
    task: str = ""
    """What is asked ('caption', 'vqa', ...): names the metrics and the decoding settings of evaluation."""
    index: int | None = None
    """Its position in an evaluation set, which is what it is known by there; None in training."""
    cluster: tuple[str, ...] = ()
    """What other samples of an evaluation set may share with it: its pictures, or the document that it is cut from.
    Bootstrap intervals draw samples that share any together; one that shares nothing is drawn alone."""
    question_type: str = ""
    """What its data set calls this kind of question ('count', 'what color'), by which runs are compared; or nothing."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample as tokens and pixels."""

    id: str
    tokens: Int[Tensor, " T"]
    labels: Int[Tensor, " T"]
    """Aligned with `tokens` (the shift by one happens in the loss); IGNORE where not learned."""
    kinds: UInt8[Tensor, " T"]
    images: UInt8[Tensor, "N 3 H W"] | Float[Tensor, "N F"]
    """N is 0 for a text-only sample; in place of pixels, F numbers that a frozen tower made of each view."""
    segments: Int[Tensor, " T"] | None = None
    """As in `Batch`, counted from 1; None where the whole row is one."""
    targets: Int[Tensor, " S"] | None = None
    """Decoder tokens of an encoder-decoder language model."""
    query_text: Int[Tensor, " L"] | None = None
    """What a Q-Former reads beside the image, in the tokens of its own vocabulary."""
    image_ids: tuple[int, ...] = ()
    """One number an image, the same wherever the same file is shown."""
    visual_counts: tuple[int, ...] = ()
    """As in `Batch`."""
    references: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    task: str = ""
    prompt: str = ""
    """The last user turn, for tables of examples."""
    index: int | None = None
    cluster: tuple[str, ...] = ()
    question_type: str = ""
    """These three as in `Sample`."""
    notes: tuple[str, ...] = ()
    """What was done to the sample that is to be counted: 'cut', 'nothing learned', 'replaced'."""


@dataclass(kw_only=True)
class Batch:
    """Rows of tokens and the images they own, all on one device. A packed row holds all K samples; else K = B."""

    ids: list[str]
    tokens: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    kinds: UInt8[Tensor, "B T"]
    segments: Int[Tensor, "B T"]
    """0 is padding; tokens attend only within their own segment."""
    positions: Int[Tensor, "B T"]
    """Restart at 0 in each segment."""
    images: UInt8[Tensor, "N 3 H W"] | Float[Tensor, "N F"]
    """Never empty: a text-only batch carries one blank image that owns no slot."""
    num_images: int
    """How many of `images` own slots: N, or 0 when the only image is the blank one."""
    targets: Int[Tensor, "B S"] | None = None
    """IGNORE is padding."""
    query_text: Int[Tensor, "K L"] | None = None
    """Of each sample, in the Q-Former's own tokens; IGNORE is padding."""
    image_ids: Int[Tensor, " I"] | None = None
    """Of the images that own slots."""
    num_files: int = 0
    """How many different files those are, on the host."""
    image_rows: Int[Tensor, " N"] | None = None
    """The sample that shows each of `images`; the blank image is counted to the first."""
    visual_counts: tuple[int, ...] = ()
    """How many visual vectors each image has, over all its views, and so many IMAGE slots; I numbers, on the host."""
    references: list[tuple[str, ...]] = field(default_factory=list)
    candidates: list[tuple[str, ...]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    indices: list[int | None] = field(default_factory=list)
    clusters: list[tuple[str, ...]] = field(default_factory=list)
    question_types: list[str] = field(default_factory=list)
    """These three as in `Sample`, on the host."""
    notes: list[tuple[str, ...]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """The training source of each sample; empty where the loader knows none."""
    own_mean: float | None = None
    """Where set, the loss of these rows is a mean of its own, which is added times this number; None: they are rows of
    the global batch like all others."""
    numbers: tuple[int, ...] = ()
    """Of these samples, dealt to ranks, among the `together` of a step that share a mean; () for consecutive ones."""
    together: int = 0
    step: tuple[Batch, ...] = ()
    """On the first micro-batch of an optimizer step: all that this rank takes in the step, in their order, on the host
    and without images. What a mean over the global batch is divided by is known from them before the first backward."""

    @cached_property
    def layout(self) -> Layout:
        """Where tokens of each kind stand; found by the collator, on the host, and moved with the batch."""
        return Layout.of(self.labels, self.segments, self.kinds, self.targets)

    def noted(self, **changes: object) -> Batch:
        """The same rows with other fields beside them; their `layout` is not found anew, as `replace` would."""
        beside = {"images", "sources", "own_mean", "numbers", "together", "step"}
        assert changes.keys() <= beside, changes.keys()
        known = object.__new__(Batch)  # a third of the time of `copy`
        vars(known).update({**vars(self), **changes})
        return known

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed, but those of `step`, which stay on the host."""
        moved, known = self.noted(), {"layout": self.layout, **vars(self)}
        vars(moved).update({n: map_tensors(v, change) for n, v in known.items() if isinstance(v, Tensor | Layout)})
        return moved

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`; itself where they are."""
        here = self.tokens.device == torch.device(device)
        return self if here else self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:  # torch's DataLoader calls it
        return self.map(Tensor.pin_memory)


@dataclass(kw_only=True)
class Term:
    """One term of a loss, sample by sample, so that `stage.reduction` can weigh samples and terms apart."""

    losses: Float[Tensor, " K"]
    """Of each sample, summed over its items."""
    tokens: Int[Tensor, " K"] | None = None
    """Items of each sample where they are its supervised tokens; None where each is one item (a pair, say)."""
    weight: float = 1.0
    """What the term's mean is multiplied by in the loss; 0 for what is only reported."""

    @property
    def count(self) -> Int[Tensor, ""]:
        """Items of the batch."""
        if self.tokens is None:
            return self.losses.new_full((), len(self.losses), dtype=torch.long)
        return self.tokens.sum()

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Over the items of the batch; a mean over none is 0 and has a gradient of 0."""
        return self.losses.sum() / self.count.clamp(min=1)


@dataclass(kw_only=True)
class Output:
    """What a forward pass gives the training loop: the terms of the loss by name, the same for every batch.

    Raises:
        ValueError: No term has a weight.
    """

    terms: dict[str, Term]

    def __post_init__(self) -> None:
        if not any(term.weight for term in self.terms.values()):
            found = ", ".join(f"{name} of weight 0" for name in self.terms) or "no term"
            raise ValueError(f"forward: found {found}, expected a term to learn")

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The loss of this batch alone: the weighted sum of its terms' means."""
        return torch.stack([term.weight * term.mean for term in self.terms.values() if term.weight]).sum()

    @property
    def count(self) -> Int[Tensor, ""]:
        """Items of the first term."""
        return next(iter(self.terms.values())).count

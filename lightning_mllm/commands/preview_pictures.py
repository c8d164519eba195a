"""Pictures of a sample as they are and as the net gets them, with the boxes that the texts name drawn on both."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from lightning_mllm.boxes import Box, Frame, Malformed, dialect_of, read
from lightning_mllm.contracts import Encoded, Sample
from lightning_mllm.processing.images import ImagePolicy, decode_image
from lightning_mllm.processing.processor import Processor

LONGEST = 512
"""Pixels of the longer side of an original on the page."""
DRAWN = 160
"""Pictures up to this side are kept as they are, and shown with their pixels."""
GROUP = re.compile(r"\[+[^\[\]]+\]+(?:;\[+[^\[\]]+\]+)*")
"""One box or more in a text."""


@dataclass(frozen=True)
class Marked:
    """A box on a picture, as shares of it."""

    x: float
    y: float
    width: float
    height: float
    text: str
    answer: bool
    """Whether it stands in an answer, and not in what is asked."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An address (`data:`) of a picture and what is marked on it."""

    address: str
    drawn: bool
    width: int
    height: int
    boxes: Sequence[Marked] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of a sample."""

    name: str
    original: Shown
    views: Sequence[Shown]
    """The squares that the net gets, the whole first."""
    grid: int
    """Views in a row of the parts."""
    wrong: Sequence[str]
    """What is wrong with the boxes."""
    notes: Sequence[str]
    """What is taken for granted of them."""


def pictures(sample: Sample, row: Encoded, processor: Processor, frame: Frame | None) -> list[Picture]:
    """The pictures that a row shows; of a cut row, those that are left.

    Args:
        frame: What coordinates in the texts are shares of; None where the source tells none.

    Raises:
        ValueError: One cannot be decoded.
    """
    policy = processor.image
    kept = len(row.images) // policy.num_views
    boxes = boxes_of(sample) if len(sample.images) == 1 else []
    found = []
    for number, ref in enumerate(sample.images[:kept]):
        image = decode_image(ref, processor.limits, policy.decode)
        squares = row.images[number * policy.num_views : (number + 1) * policy.num_views]
        whole, *parts = [_square(each) for each in squares]
        told = _Told(boxes, frame, policy, image.size)
        views = [Shown(**{**vars(whole), "boxes": told.on_square()}), *parts]
        original = _picture(image, told.on_original())
        about = {"wrong": told.wrong(), "notes": told.notes()}
        found.append(Picture(name=PurePath(ref.name).name, original=original, views=views, grid=policy.grid, **about))
    return found


def boxes_of(sample: Sample) -> list[tuple[Box, str, bool]]:
    """The boxes that the turns and the references name: box, its text, and whether it stands in an answer."""
    texts = [(turn.text, turn.role == "assistant") for turn in sample.turns]
    if not any(answer for _, answer in texts):
        texts += [(text, True) for text in sample.references[:1]]
    found = []
    for text, answer in texts:
        for group in GROUP.findall(text):
            dialect = dialect_of(group)
            read_ = () if dialect is None else read(group, dialect)
            found += [(box, group, answer) for box in (() if isinstance(read_, Malformed) else read_)]
    return found


@dataclass(frozen=True)
class _Told:
    """Boxes of a text, on the picture that they are told of and on the square that the net gets."""

    boxes: Sequence[tuple[Box, str, bool]]
    stated: Frame | None
    policy: ImagePolicy
    size: tuple[int, int]

    @property
    def frame(self) -> Frame:
        """What the source states; that of the net's pictures where it states none."""
        return self.stated or self.policy.frame or "image"

    def on_original(self) -> list[Marked]:
        width, height = self.size
        side = max(width, height)
        left, top = ((side - width) / 2, (side - height) / 2) if self.frame == "square" else (0.0, 0.0)
        wide, high = (side, side) if self.frame == "square" else (width, height)

        def place(x: float, y: float) -> tuple[float, float]:
            return (x * wide - left) / width, (y * high - top) / height

        return [_marked(box, text, answer, place) for box, text, answer in self.boxes]

    def on_square(self) -> list[Marked]:
        """Where the numbers are on the square, as the net reads them: off, where they are of another frame.

        Of a square that is cut out, where the things are.
        """
        if self.policy.frame is not None:
            return [_marked(box, text, answer, lambda x, y: (x, y)) for box, text, answer in self.boxes]
        width, height = self.size
        short = min(width, height)
        found = []
        for each in self.on_original():

            def place(x: float, y: float) -> tuple[float, float]:
                return (x * width - (width - short) / 2) / short, (y * height - (height - short) / 2) / short

            box = Box(each.x, each.y, each.x + each.width, each.y + each.height)
            found.append(_marked(box, each.text, each.answer, place))
        return found

    def wrong(self) -> list[str]:
        if not self.boxes or self.policy.frame == self.frame:
            return []
        shows = "cuts a part" if self.policy.frame is None else f"shows the {self.policy.frame}"
        return [f"the boxes are told as shares of the {self.frame}, and image.fit: {self.policy.fit} {shows}"]

    def notes(self) -> list[str]:
        if not self.boxes or self.stated or self.size[0] == self.size[1]:
            return []
        return [f"the source names no frame of its boxes; they are drawn as shares of the {self.frame}"]


def _marked(box: Box, text: str, answer: bool, place: Callable[[float, float], tuple[float, float]]) -> Marked:
    (x0, y0), (x1, y1) = place(box.x0, box.y0), place(box.x1, box.y1)
    return Marked(x0, y0, x1 - x0, y1 - y0, text, answer)


def _square(pixels: UInt8[Tensor, "3 S S"]) -> Shown:
    return _picture(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))


def _picture(image: Image.Image, boxes: Sequence[Marked] = ()) -> Shown:
    width, height = image.size
    drawn = max(width, height) <= DRAWN
    if not drawn:
        image = image.copy()
        image.thumbnail((LONGEST, LONGEST))
    stream = io.BytesIO()
    image.save(stream, **({"format": "PNG"} if drawn else {"format": "JPEG", "quality": 88}))
    kind = "png" if drawn else "jpeg"
    address = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Shown(address=address, drawn=drawn, width=width, height=height, boxes=tuple(boxes))

"""Boxes as text: what data modules write, evaluation reads, and nobody spells a second time.

    pixels of an image --of_pixels--> Box (shares of the image) --write--> "[[100,250,400,749]]" --read--> Box

A dialect is how one lineage spells boxes. Numbers are rounded to the nearest step of the dialect's grid, halves up, and
kept within its range; a box thinner than a step is widened to one, so that whatever is written can be read again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Frame = Literal["image", "square"]
"""What the coordinates are shares of: the image, or the image padded to a square with the image in the middle."""

FRAMES: tuple[Frame, ...] = ("image", "square")


class Box(NamedTuple):
    """Left, top, right and bottom edge, as shares (0 to 1) of the width and the height of the frame."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return max(self.x1 - self.x0, 0.0) * max(self.y1 - self.y0, 0.0)


@dataclass(frozen=True)
class Malformed:
    """Why a text is no box."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How boxes are spelled."""

    form: str
    """One box, for people."""
    opens: str
    closes: str
    comma: str
    """Between the numbers of a box."""
    between: str
    """Between boxes."""
    together: bool
    """Whether several boxes share one pair of brackets."""
    grid: int
    """Steps from one edge of the frame to the other."""
    last: int
    """The largest step that can be spelled."""
    decimals: int
    """Digits after the point; 0 where steps are spelled as whole numbers."""
    digits: int = 0
    """Of a whole number, with zeros in front; 0 for no more than needed."""

    def number(self, step: int) -> str:
        """A step as the dialect spells it."""
        return f"{step / self.grid:.{self.decimals}f}" if self.decimals else f"{step:0{self.digits or 1}d}"

    def step(self, share: float) -> int:
        """The step nearest to a share, halves up, within the range."""
        # 0.575 * 100 is 57.49999999999999.
        return min(max(math.floor(share * self.grid + 0.5 + 1e-9), 0), self.last)


DIALECTS: dict[str, Dialect] = {
    # CogVLM (arXiv 2311.03079, sec. 2.3): three digits, 000 to 999; a released number n is read as n / 1000.
    "cogvlm": Dialect(
        form="[[x0,y0,x1,y1]]",
        opens="[[",
        closes="]]",
        comma=",",
        between=";",
        together=True,
        grid=1000,
        last=999,
        decimals=0,
        digits=3,
    ),
    # Ferret (arXiv 2310.07704, released code): whole numbers on a grid of 1000 x 1000.
    "ferret": Dialect(
        form="[x0, y0, x1, y1]",
        opens="[",
        closes="]",
        comma=", ",
        between=", ",
        together=False,
        grid=1000,
        last=1000,
        decimals=0,
    ),
    # LLaVA-1.5 (arXiv 2310.03744, released data), and SPHINX: decimals of the image padded to a square.
    "llava": Dialect(
        form="[0.00, 0.00, 1.00, 1.00]",
        opens="[",
        closes="]",
        comma=", ",
        between=", ",
        together=False,
        grid=100,
        last=100,
        decimals=2,
    ),
}

_BRACKETS = re.compile(r"(\[*)([^\[\]]*)(\]*)")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)")


def of_pixels(
    left: float, top: float, width: float, height: float, image_width: int, image_height: int, frame: Frame = "image"
) -> Box:
    """A box from COCO's (left, top, width, height), in pixels of an image.

    What stands over the edge of the image is cut off: published boxes do, by rounding and by hand.

    Raises:
        ValueError: an image without a size, or a box of which nothing is inside the image.
    """
    if image_width < 1 or image_height < 1:
        raise ValueError(f"the image is {image_width} x {image_height} pixels, expected at least 1 x 1")
    given = (left, top, left + width, top + height)
    if not all(map(math.isfinite, given)):
        raise ValueError(f"the box is [{left:g}, {top:g}, {width:g}, {height:g}], expected finite numbers")
    x0, x1 = (min(max(each, 0.0), float(image_width)) for each in given[::2])
    y0, y1 = (min(max(each, 0.0), float(image_height)) for each in given[1::2])
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"the box [{left:g}, {top:g}, {width:g}, {height:g}] (left, top, width, height) has no area inside the "
            f"image of {image_width} x {image_height} pixels"
        )
    return Box(
        *point_of_pixels(x0, y0, image_width, image_height, frame),
        *point_of_pixels(x1, y1, image_width, image_height, frame),
    )


def point_of_pixels(
    x: float, y: float, image_width: int, image_height: int, frame: Frame = "image"
) -> tuple[float, float]:
    """A point in pixels of an image as shares of the width and the height of the frame."""
    if frame == "square":
        side = max(image_width, image_height)
        return (x + (side - image_width) / 2) / side, (y + (side - image_height) / 2) / side
    return x / image_width, y / image_height


def write(boxes: Sequence[Box], dialect: str) -> str:
    """The text of one box or more.

    Raises:
        ValueError: a dialect that does not exist.
    """
    how = named(dialect)
    assert boxes, "no box to write"
    each = [how.comma.join(map(how.number, _steps(box, how))) for box in boxes]
    if how.together:
        return how.opens + how.between.join(each) + how.closes
    return how.between.join(how.opens + text + how.closes for text in each)


def write_point(x: float, y: float, dialect: str) -> str:
    """The text of a point, shares of the frame: a box of two numbers.

    Raises:
        ValueError: a dialect that does not exist.
    """
    how = named(dialect)
    return how.opens + how.comma.join(how.number(how.step(each)) for each in (x, y)) + how.closes


def read(text: str, dialect: str) -> tuple[Box, ...] | Malformed:
    """All boxes of a text, in order; or why it is no text with boxes. What stands around the brackets is not looked at.

    Raises:
        ValueError: a dialect that does not exist.
    """
    how = named(dialect)
    boxes: list[Box] = []
    for opens, inner, closes in _BRACKETS.findall(text):
        if not opens and not closes:
            continue
        if (opens, closes) != (how.opens, how.closes):
            return Malformed(f"found '{opens}{inner}{closes}', expected {how.form}")
        for part in inner.split(how.between) if how.together else [inner]:
            box = _box(part, how)
            if isinstance(box, Malformed):
                return box
            boxes.append(box)
    return tuple(boxes) if boxes else Malformed(f"found no brackets, expected {how.form}")


def dialect_of(text: str) -> str | None:
    """The dialect in which a text can be read as boxes; None if it is in none. No text is in two."""
    if "[[" in text:
        known = "cogvlm"
    else:
        found = re.search(r"\[([^\[\]]*)\]", text)
        known = "llava" if found and "." in found.group(1) else "ferret"
    return None if isinstance(read(text, known), Malformed) else known


def iou(one: Box, other: Box) -> float:
    """Area of the intersection over the area of the union, 0 to 1."""
    wide, high = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    both = max(wide, 0.0) * max(high, 0.0)
    union = one.area + other.area - both
    return both / union if union > 0 else 0.0


def named(dialect: str) -> Dialect:
    """A dialect by its name; ValueError for a name that is none."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect: found {dialect!r}, expected one of {', '.join(DIALECTS)}")
    return DIALECTS[dialect]


def _steps(box: Box, how: Dialect) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = map(how.step, box)
    if x1 <= x0:
        x0, x1 = (x0, x0 + 1) if x0 < how.last else (x0 - 1, x0)
    if y1 <= y0:
        y0, y1 = (y0, y0 + 1) if y0 < how.last else (y0 - 1, y0)
    return x0, y0, x1, y1


def _box(text: str, how: Dialect) -> Box | Malformed:
    parts = [part.strip() for part in text.split(",")]
    if odd := [part for part in parts if not _NUMBER.fullmatch(part)]:
        return Malformed(f"found {odd[0]!r}, expected a number as in {how.form}")
    if len(parts) != 4:
        return Malformed(f"found '{text.strip()}', expected 4 numbers as in {how.form}")
    if not how.decimals and (odd := [part for part in parts if "." in part]):
        return Malformed(f"found {odd[0]}, expected whole numbers of 0 to {how.last}")
    values = [float(part) for part in parts]
    last, unit = (how.last / how.grid, 1) if how.decimals else (how.last, how.grid)
    if odd := [part for part, value in zip(parts, values, strict=True) if not 0 <= value <= last]:
        return Malformed(f"found {odd[0]}, expected numbers of 0 to {last:g}")
    box = Box(*(value / unit for value in values))
    if box.x1 <= box.x0 or box.y1 <= box.y0:
        which, (low, high) = ("x", parts[::2]) if box.x1 <= box.x0 else ("y", parts[1::2])
        return Malformed(f"found {which}1 {high} and {which}0 {low}, expected {which}1 above {which}0")
    return box

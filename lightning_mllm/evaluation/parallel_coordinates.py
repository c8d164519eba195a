"""Parallel coordinates: an axis a parameter and one for the metric, a line a trial, drawn by matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lightning_mllm.evaluation.figures import LIGHT, STYLE, inline, number

WIDTH, HEIGHT = 960, 480
"""In points of the page, in pixels of the picture."""
MARGINS = {"left": 0.1, "right": 0.12, "top": 0.16, "bottom": 0.06}
MOST_TICKS, MOST_LETTERS = 8, 18
GOOD, POOR = LIGHT["c0"], LIGHT["c1"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: of numbers, or of words in order."""

    name: str
    values: Sequence[float] = ()
    """The numbers that trials have, rising."""
    words: Sequence[str] = ()
    logarithmic: bool = False

    def height(self, value: float) -> float:
        """Where a number, or a word by its index, stands: from 0 to 1."""
        if self.words:
            return (value + 0.5) / len(self.words)
        low, high, at = (np.log10(each) if self.logarithmic else each for each in (*self._range, value))
        return float((at - low) / (high - low)) if high > low else 0.5

    def heights(self, values: Sequence[float]) -> list[float]:
        return [self.height(each) for each in values]

    @property
    def _range(self) -> tuple[float, float]:
        return self.values[0], self.values[-1]

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Height and label of each."""
        if self.words:
            return [(self.height(index), word) for index, word in enumerate(self.words)]
        if len(self.values) <= MOST_TICKS:
            shown = [float(each) for each in self.values]
        else:
            low, high = self._range
            shown = (np.geomspace if self.logarithmic else np.linspace)(low, high, 5).tolist()
        return [(self.height(each), number(each)) for each in shown]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One trial."""

    heights: Sequence[float] = field(default_factory=tuple)
    """On each axis."""
    goodness: float
    """From 0, the worst, to 1."""
    best: bool = False


def as_svg(axes: Sequence[Axis], lines: Sequence[Line]) -> str:
    """The figure in the colours of the style sheet, for a page."""
    with matplotlib.rc_context(STYLE):
        file = io.StringIO()
        figure = _figure(axes, lines, 72)
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return inline(file.getvalue())


def draw_lines(path: Path, axes: Sequence[Axis], lines: Sequence[Line], *, title: str) -> None:
    """Writes the figure as a PNG."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(axes, lines, 72)
        figure.text(0.03, 0.96, title, fontsize=14, va="center", parse_math=False)
        figure.savefig(path, format="png", dpi=144, facecolor=LIGHT["card"], metadata={"Software": None})


def _figure(axes: Sequence[Axis], lines: Sequence[Line], unit: int) -> Figure:
    figure = Figure(figsize=(WIDTH / unit, HEIGHT / unit), dpi=unit)
    width, height = 1 - MARGINS["left"] - MARGINS["right"], 1 - MARGINS["top"] - MARGINS["bottom"]
    frame = figure.add_axes((MARGINS["left"], MARGINS["bottom"], width, height))
    frame.set_axis_off()
    places = np.arange(len(axes), dtype=float)
    frame.set_xlim(0, max(1, len(axes) - 1))
    frame.set_ylim(0, 1)
    for place, axis in zip(places, axes, strict=True):
        frame.plot([place, place], [0, 1], color=LIGHT["blind"], linewidth=1.2, clip_on=False, zorder=1)
        heading = "\n".join(textwrap.wrap(axis.name.replace(".", ". "), 18)).replace(". ", ".")
        frame.text(place, 1.06, heading, ha="center", va="bottom", color=LIGHT["ink"], parse_math=False)
        for at, text in axis.ticks:
            frame.plot([place, place + 0.012 * len(axes)], [at, at], color=LIGHT["blind"], linewidth=1, clip_on=False)
            short = "\n".join(textwrap.wrap(text, MOST_LETTERS, break_long_words=False)[:3])
            frame.text(
                place + 0.02 * len(axes) / 2,
                at,
                short,
                va="center",
                color=LIGHT["soft"],
                fontsize=10,
                parse_math=False,
                zorder=4,
                bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
            )
    for line in sorted(lines, key=lambda each: (each.best, each.goodness)):
        colour = LIGHT["c3"] if line.best else _between(POOR, GOOD, line.goodness)
        thick, opaque = (3.2, 1.0) if line.best else (1.6, 0.35 + 0.55 * line.goodness)
        xs, ys = _curve(places, line.heights)
        frame.plot(xs, ys, color=colour, linewidth=thick, alpha=opaque, clip_on=False, zorder=3 if line.best else 2)
    return figure


def _curve(places: np.ndarray, heights: Sequence[float]) -> tuple[list[float], list[float]]:
    """Through its heights, level at every axis, so that lines which cross can be followed."""
    xs: list[float] = []
    ys: list[float] = []
    for start, low, high in zip(places, heights, heights[1:], strict=False):
        steps = np.linspace(0, 1, 24)
        xs += (start + steps).tolist()
        ys += (low + (high - low) * (3 * steps**2 - 2 * steps**3)).tolist()
    return xs, ys


def _between(first: str, second: str, share: float) -> str:
    """A colour between two, as hexadecimal digits."""
    pairs = [(int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)

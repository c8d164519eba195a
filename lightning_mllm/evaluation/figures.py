"""The figures of a report and of a sweep over mixes, by matplotlib: the same input gives the same bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.weights.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

LIGHT = {
    "ground": "#faf9f7",
    "card": "#ffffff",
    "ink": "#1d1f24",
    "soft": "#666a73",
    "line": "#e5e3de",
    "track": "#efede8",
    "blind": "#b4afa6",
    "bad": "#c2553a",
    "c0": "#0d7a70",
    "c1": "#d98324",
    "c2": "#5b6ee1",
    "c3": "#b8477a",
    "c4": "#6b8e23",
    "c5": "#7a6a58",
}
"""Colours by their name in the style sheet of the report."""
DARK = {
    "ground": "#14161a",
    "card": "#1c1f25",
    "ink": "#eceae6",
    "soft": "#9b9fa8",
    "line": "#2d3139",
    "track": "#2a2e36",
    "blind": "#6d7078",
    "bad": "#e5805f",
    "c0": "#35b9a9",
    "c1": "#eba351",
    "c2": "#8b9bf4",
    "c3": "#df7fab",
    "c4": "#a5c661",
    "c5": "#b7a58f",
}
SERIES = 6
WIDTH, HEIGHT = 560, 230
"""Of a figure in the report, in points."""
MOST_POINTS = 400
SWEEP_WIDTH, SWEEP_HEIGHT = 960, 540
"""Of the figure of a sweep, in pixels."""

STYLE: dict[RcKeyType, object] = {
    "svg.hashsalt": "lightning-mllm",  # ids are a function of the content
    "svg.fonttype": "none",
    "font.size": 11.5,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 1.0,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["soft"],
    "xtick.labelcolor": LIGHT["soft"],
    "ytick.labelcolor": LIGHT["soft"],
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.major.pad": 8.0,
    "ytick.major.pad": 8.0,
    "lines.solid_joinstyle": "round",
}

Points = Float[np.ndarray, "N 2"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a figure."""

    name: str
    points: Sequence[tuple[float, float]]
    """(step, value), steps rising."""
    noisy: bool = False
    """Drawn faintly under its running mean."""


def curves(lines: Sequence[Curve], *, from_zero: bool = False) -> str:
    """Curves over optimizer steps in one frame, as SVG in the colours of the style sheet; empty without a value."""
    shown = [_thinned(line.points) for line in lines]
    values = np.concatenate([points[:, 1] for points in shown])
    if not len(values):
        return ""
    bottom, top = _frame(values, from_zero)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(WIDTH / 72, HEIGHT / 72, left=48, right=14, top=14, bottom=30, unit=72)
        axes.set_ylim(bottom, top)
        for index, (line, points) in enumerate(zip(lines, shown, strict=True)):
            colour = LIGHT[f"c{index % SERIES}"]
            if line.noisy:
                axes.plot(*points.T, color=colour, linewidth=1, alpha=0.28)
                axes.plot(*_smoothed(points).T, color=colour, linewidth=2)
            else:
                dots = None if len(points) <= 40 else [len(points) - 1]
                axes.plot(
                    *points.T, color=colour, linewidth=2, marker="o", markersize=5.2, markevery=dots, clip_on=False
                )
        first, last = min(points[0, 0] for points in shown if len(points)), max(p[-1, 0] for p in shown if len(p))
        axes.set_xlim(first, max(last, first + 1))
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return inline(file.getvalue())


def draw_scores(path: Path, scores: Mapping[float, Interval], *, title: str, chosen: float) -> None:
    """Writes a score over the weight of a mix, with its interval, as a PNG.

    Args:
        scores: Beta -> the score and its interval; at least two.
        title: Of the figure.
        chosen: The beta that is marked and named.
    """
    betas = sorted(scores)
    assert len(betas) > 1, betas
    low, value, high = (np.array([getattr(scores[beta], name) for beta in betas]) for name in ("low", "value", "high"))
    with matplotlib.rc_context({**STYLE, "font.size": 11.0}):
        figure, axes = _axes(SWEEP_WIDTH / 100, SWEEP_HEIGHT / 100, left=84, right=36, top=70, bottom=64, unit=100)
        axes.fill_between(betas, low, high, color=LIGHT["c0"], alpha=0.2, linewidth=0)
        axes.plot(betas, value, color=LIGHT["c0"], linewidth=2.2, marker="o", markersize=6, clip_on=False)
        best = scores[chosen].value
        ring = {"markerfacecolor": LIGHT["card"], "markeredgecolor": LIGHT["ink"], "markeredgewidth": 2.2}
        axes.plot(chosen, best, marker="o", markersize=12, clip_on=False, **ring)
        right = chosen > betas[0] + 0.75 * (betas[-1] - betas[0])
        axes.annotate(
            f"beta {chosen:g}: {best:.3f}",
            (chosen, best),
            xytext=(-10 if right else 10, 14),
            textcoords="offset points",
            horizontalalignment="right" if right else "left",
        )
        axes.set_xlim(betas[0], betas[-1])
        axes.set_ylim(*_frame(np.concatenate([low, high]), False))
        axes.set_xlabel("beta", labelpad=10)
        heading = figure.text(
            84 / SWEEP_WIDTH, 1 - 34 / SWEEP_HEIGHT, title, fontsize=14, va="center", parse_math=False
        )
        room = SWEEP_WIDTH - 84 - 36
        heading.set_fontsize(14 * min(1.0, room / heading.get_window_extent().width))
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=100, facecolor=LIGHT["card"], metadata={"Software": None})
        write_bytes(path, picture.getvalue())


def _axes(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float, unit: float
) -> tuple[Figure, Axes]:
    """A figure of so many inches and its axes, inside of margins of which `unit` are an inch."""
    figure = Figure(figsize=(width, height), dpi=unit)
    w, h = width * unit, height * unit
    axes = figure.add_axes((left / w, bottom / h, 1 - (left + right) / w, 1 - (top + bottom) / h))
    axes.patch.set_visible(False)
    for axis, most in ((axes.xaxis, 8), (axes.yaxis, 6)):
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    return figure, axes


def _frame(values: Float[np.ndarray, " N"], from_zero: bool) -> tuple[float, float]:
    """Round numbers that enclose the values; of many, the first steps of a loss may stand above the frame."""
    top = float(np.quantile(values, 0.985) if len(values) >= 50 else values.max())
    bottom = 0.0 if from_zero else min(float(values.min()), top)
    ticks = round_numbers(bottom, top)
    return ticks[0], ticks[-1]


def inline(svg: str) -> str:
    """Without what only a file of its own needs, and with the variables of the style sheet as colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(?<=<g) id="[^"]*"|font-family: [^;]*; ', "", svg)
    names = {colour: name for name, colour in LIGHT.items()}
    return re.sub("|".join(names), lambda match: f"var(--{names[match.group()]})", svg)


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """About `most` round numbers that enclose low and high."""
    high = high if high > low else low + (abs(low) or 1.0)
    return [float(tick) for tick in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def number(value: float) -> str:
    """A number in three or four digits: 0.042, 3.1, 1,200, 6.4 M."""
    if abs(value) >= 1e9:
        return f"{value / 1e9:.3g} B"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g} k"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units: 8.4 s, 3 min 20 s, 5 h 12 min."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _thinned(points: Sequence[tuple[float, float]]) -> Points:
    """The finite points, means of neighbours where there are many."""
    found = np.array([point for point in points if math.isfinite(point[1])], dtype=float).reshape(-1, 2)
    groups = np.array_split(found, min(len(found), MOST_POINTS)) if len(found) else []
    return np.array([(group[-1, 0], group[:, 1].mean()) for group in groups]).reshape(-1, 2)


def _smoothed(points: Points) -> Points:
    """Centred means over at most a twenty-fifth of the curve, narrower where it starts and is steep."""
    half = len(points) // 50
    means = [points[index - min(half, index) : index + min(half, index) + 1, 1].mean() for index in range(len(points))]
    return np.column_stack([points[:, 0], means])

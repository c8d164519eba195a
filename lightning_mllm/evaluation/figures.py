"""Pictures of a report: curves as inline SVG, scores and shares as bars. Colours are those of page.css."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 30
MOST_POINTS = 400

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a figure."""

    name: str
    points: Sequence[Point]
    """(step, value), steps rising."""
    noisy: bool = False
    """Drawn faintly under its running mean."""


def curves(lines: Sequence[Curve], title: str, *, from_zero: bool = False) -> str:
    """Curves over optimizer steps in one frame, with a legend where there are several."""
    shown = [_thinned(line.points) for line in lines]
    values = [y for points in shown for _, y in points if math.isfinite(y)]
    steps = [x for points in shown for x, _ in points]
    if not values:
        return ""
    bottom, top = min(values), _without_peak(values)
    bottom = 0.0 if from_zero else min(bottom, top)
    ticks = nice_ticks(bottom, top)
    bottom, top = min(ticks[0], bottom), max(ticks[-1], top)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(point: Point) -> str:
        x = LEFT + (point[0] - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (min(max(point[1], bottom), top) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for tick in ticks:
        x, y = place((first, tick)).split(",")
        parts.append(f'<line class="grid" x1="{x}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{float(y) + 4:.1f}">{number(tick)}</text>')
    for tick in nice_ticks(first, last, most=6):
        if first <= tick <= last:
            x = place((tick, bottom)).split(",")[0]
            parts.append(f'<text class="tick middle" x="{x}" y="{HEIGHT - 10}">{number(tick)}</text>')
    for index, (line, points) in enumerate(zip(lines, shown, strict=True)):
        colour = f"series-{index % 6}"
        points = [point for point in points if math.isfinite(point[1])]
        path = " ".join(map(place, points))
        hint = f"<title>{html.escape(line.name)}: {number(points[-1][1])} at step {points[-1][0]:.0f}</title>"
        if line.noisy:
            smooth = " ".join(map(place, _smoothed(points)))
            parts.append(f'<polyline class="curve faint {colour}" points="{path}"/>')
            parts.append(f'<polyline class="curve {colour}" points="{smooth}">{hint}</polyline>')
        else:
            parts.append(f'<polyline class="curve {colour}" points="{path}">{hint}</polyline>')
            dots = points if len(points) <= 40 else points[-1:]
            parts += [
                f'<circle class="dot {colour}" cx="{x}" cy="{y}" r="2.6"/>'
                for x, y in (place(point).split(",") for point in dots)
            ]
    legend = "".join(
        f'<span><i class="series-{index % 6}"></i>{html.escape(line.name)}</span>' for index, line in enumerate(lines)
    )
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        + (f'<div class="legend">{legend}</div>' if len(lines) > 1 else "")
        + "</figure>"
    )


def bar(value: float, top: float, *, low: float | None = None, high: float | None = None, kind: str = "") -> str:
    """A horizontal bar of value / top, with a whisker from `low` to `high`."""

    def percent(x: float) -> float:
        return 100 * min(max(x / top, 0), 1)

    whisker = ""
    if low is not None and high is not None:
        whisker = f'<b style="left:{percent(low):.2f}%;width:{percent(high) - percent(low):.2f}%"></b>'
    return f'<div class="bar {kind}"><i style="width:{percent(value):.2f}%"></i>{whisker}</div>'


def shares(parts: Sequence[tuple[str, float, str]]) -> str:
    """One bar cut into labelled parts (name, amount, amount in words)."""
    total = sum(amount for _, amount, _ in parts) or 1
    cut = "".join(
        f'<i class="series-{index % 6}" style="width:{100 * amount / total:.2f}%"></i>'
        for index, (_, amount, _) in enumerate(parts)
    )
    legend = "".join(
        f'<span><i class="series-{index % 6}"></i>{html.escape(name)} <em>{html.escape(text)}</em></span>'
        for index, (name, _, text) in enumerate(parts)
    )
    return f'<div class="shares">{cut}</div><div class="legend">{legend}</div>'


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round numbers that enclose low and high."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(index * step, 12) for index in range(start, stop + 1)]


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


def _thinned(points: Sequence[Point]) -> list[Point]:
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if size > 1 else [[p] for p in points]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Centred means over at most a twenty-fifth of the curve, narrower where it starts and is steep."""
    out, half = [], len(points) // 50
    for index, (x, _) in enumerate(points):
        reach = min(half, index)
        near = points[index - reach : index + reach + 1]
        out.append((x, sum(y for _, y in near) / len(near)))
    return out


def _without_peak(values: Sequence[float]) -> float:
    """The top of the frame: the first steps of a loss curve may stand far above everything that matters."""
    ordered = sorted(values)
    return ordered[-1] if len(ordered) < 50 else ordered[int(0.985 * (len(ordered) - 1))]

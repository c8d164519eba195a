from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.evaluation.figures import (
    DARK,
    HEIGHT,
    LIGHT,
    SWEEP_HEIGHT,
    SWEEP_WIDTH,
    WIDTH,
    Curve,
    curves,
    draw_scores,
    duration,
    number,
    round_numbers,
)

SCORES = {
    beta: Interval(value=value, low=value - 0.1, high=value + 0.1) for beta, value in ((0, 0.2), (0.5, 0.6), (1, 0.4))
}


def drawn(figure: str) -> list[list[tuple[float, float]]]:
    """The points of each curve."""
    root = ElementTree.fromstring(figure.replace("xlink:href", "href"))
    lines = [each.attrib for each in root.iter("path") if "var(--c" in each.attrib.get("style", "")]
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", line["d"])]
        for line in lines
        if "fill: none" in line["style"]
    ]


@pytest.mark.parametrize("count", [1, 2, 49, 400, 5000])
def test_curves_stay_in_the_frame(count: int) -> None:
    points = [(float(step), 3 * math.exp(-step / 40) + 0.2 * math.sin(step)) for step in range(1, count + 1)]
    figure = curves([Curve(name="loss", points=points, noisy=True)])
    found = drawn(figure)
    assert len(found) == 2 and all(0 <= x <= WIDTH for line in found for x, _ in line)
    assert 'clip-path="url(#' in figure, "what is above the frame is cut off"
    assert all(y <= HEIGHT for line in found for _, y in line) and sum(map(len, found)) <= 2 * 400


def test_falling_values_go_down_the_page_and_a_high_start_does_not_flatten_the_rest() -> None:
    points = [(float(step), 100.0 if step == 1 else 2 - (step / 200) ** 2) for step in range(1, 201)]
    (line,) = drawn(curves([Curve(name="loss", points=points)]))
    heights = [y for _, y in line]
    assert heights[0] < 0, "above the frame"
    assert heights[1:] == sorted(heights[1:]) and heights[-1] - heights[1] > HEIGHT / 3


def test_values_that_are_all_the_same_and_no_values_at_all() -> None:
    assert drawn(curves([Curve(name="loss", points=[(1.0, 0.5), (2.0, 0.5)])]))
    assert curves([Curve(name="loss", points=[])]) == ""
    assert curves([Curve(name="loss", points=[(1.0, math.nan)])]) == ""


def test_figures_are_inlined_in_the_colours_of_the_style_sheet_and_the_same_each_time() -> None:
    lines = [Curve(name=name, points=[(0.0, 1.0), (1.0, 2.0)]) for name in ("one", "two")]
    figure = curves(lines, from_zero=True)
    assert figure == curves(lines, from_zero=True)
    assert "var(--c0)" in figure and "var(--c1)" in figure and "var(--soft)" in figure
    assert not re.search(r"#[0-9a-f]{6}\b(?!\))|https?:|<metadata|<style|font-family|<!DOCTYPE", figure)
    assert LIGHT.keys() == DARK.keys() and len(set(LIGHT.values())) == len(LIGHT)


def test_where_the_curve_of_a_sweep_the_interval_and_the_best_are(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw_scores(tmp_path / f"{name}.png", SCORES, title="a score", chosen=0.5)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    image = Image.open(tmp_path / "one.png").convert("RGB")
    assert image.size == (SWEEP_WIDTH, SWEEP_HEIGHT)

    def colour(beta: float, value: float, right: int = 0, down: int = 0) -> tuple[int, ...]:
        """At a point of the plane, whose frame goes from 0.1 to 0.7 in round numbers."""
        x = 84 + beta * (SWEEP_WIDTH - 84 - 36) + right
        y = SWEEP_HEIGHT - 64 - (value - 0.1) / 0.6 * (SWEEP_HEIGHT - 70 - 64) + down
        found = image.getpixel((round(x), round(y)))
        assert isinstance(found, tuple)
        return found

    def near(found: tuple[int, ...], expected: str) -> bool:
        return all(abs(a - b) < 24 for a, b in zip(found, ImageColor.getrgb(expected), strict=True))

    assert near(colour(0.25, 0.4), LIGHT["c0"]) and near(colour(0.75, 0.5), LIGHT["c0"])
    assert near(colour(0.25, 0.47), "#cfe4e2") and near(colour(0.25, 0.33), "#cfe4e2")
    assert near(colour(0.25, 0.55), LIGHT["card"]) and near(colour(0.25, 0.25), LIGHT["card"])
    assert near(colour(0.5, 0.6), LIGHT["card"]), "the best is a ring"
    assert near(colour(0.5, 0.6, down=-8), LIGHT["ink"]) and not near(colour(0, 0.2, right=8), LIGHT["ink"])


def test_a_long_title_of_a_sweep_stays_inside(tmp_path: Path) -> None:
    for name, title in (
        ("short", "a score"),
        ("long", "a_long_name_of_a_score of beta * one_stage + (1 - beta) * " * 2),
    ):
        draw_scores(tmp_path / f"{name}.png", SCORES, title=title, chosen=1)
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert (pixels[:50, SWEEP_WIDTH - 26 :] == 255).all(), name
        assert (pixels[:50, :SWEEP_WIDTH] < 128).any(), name


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.0123, 0.0345), (3.9, 1234), (-5, 5), (7, 7), (0, 0)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    ticks = round_numbers(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    assert len({round(b - a, 9) for a, b in itertools.pairwise(ticks)}) == 1


def test_numbers_and_times_in_words() -> None:
    words = [number(x) for x in (0, 0.25, 12, 1234, 45_678, 6_738_000_000, 7_000_000)]
    assert words == ["0", "0.25", "12", "1,234", "45.7 k", "6.74 B", "7 M"]
    assert [duration(s) for s in (8.44, 42, 59.7, 200, 7260)] == [
        "8.4 s",
        "42 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 1 min",
    ]


def test_a_figure_that_fails_leaves_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curve.png"
    draw_scores(path, SCORES, title="a score", chosen=0.5)
    before = path.read_bytes()

    def half(self: object, target: Any, **settings: object) -> None:
        with open(target, "wb") if isinstance(target, str | Path) else nullcontext(target) as stream:
            stream.write(before[: len(before) // 2])
        raise OSError("the disk is full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match="the disk is full"):
        draw_scores(path, SCORES, title="another", chosen=0.5)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

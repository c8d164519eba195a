from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest

from lightning_mllm.evaluation.figures import HEIGHT, WIDTH, Curve, bar, curves, duration, nice_ticks, number, shares


def drawn(lines: list[Curve], **settings) -> ElementTree.Element:
    return ElementTree.fromstring(curves(lines, "Loss & <more>", **settings))


def coordinates(figure: ElementTree.Element) -> list[tuple[float, float]]:
    return [
        tuple(map(float, point.split(",")))  # pyright: ignore[reportReturnType]
        for line in figure.iter("polyline")
        for point in line.attrib["points"].split()
    ]


@pytest.mark.parametrize("count", [1, 2, 49, 400, 5000])
def test_curves_stay_in_the_frame(count: int) -> None:
    points = [(float(step), 3 * math.exp(-step / 40) + 0.2 * math.sin(step)) for step in range(1, count + 1)]
    found = coordinates(drawn([Curve(name="loss", points=points, noisy=True)]))
    assert found
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in found)
    assert len(found) <= 2 * 400


def test_falling_values_go_down_the_page_and_a_high_start_does_not_flatten_the_rest() -> None:
    points = [(float(step), 100.0 if step == 1 else 2 - step / 200) for step in range(1, 201)]
    heights = [y for _, y in coordinates(drawn([Curve(name="loss", points=points)]))]
    assert heights[1:] == sorted(heights[1:])
    assert heights[-1] - heights[1] > HEIGHT / 3


def test_values_that_are_all_the_same_and_no_values_at_all() -> None:
    assert coordinates(drawn([Curve(name="loss", points=[(1.0, 0.5), (2.0, 0.5)])]))
    assert curves([Curve(name="loss", points=[])], "empty") == ""
    assert curves([Curve(name="loss", points=[(1.0, math.nan)])], "empty") == ""


def test_several_curves_have_a_legend() -> None:
    figure = drawn([Curve(name=name, points=[(0.0, 1.0), (1.0, 2.0)]) for name in ("one", "<two>")], from_zero=True)
    assert [span.findtext("i", "") + "".join(span.itertext()) for span in figure.iter("span")] == ["one", "<two>"]


def test_bars_and_whiskers_are_shares_of_the_top() -> None:
    assert 'width:25.00%"></i><b style="left:20.00%;width:10.00%"' in bar(0.5, 2.0, low=0.4, high=0.6)
    assert "width:100.00%" in bar(3.0, 2.0)
    ElementTree.fromstring(bar(0.1, 1.0, low=0.0, high=1.0))
    assert "width:75.00%" in shares([("a", 3, "3 s"), ("b & c", 1, "1 s")])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.0123, 0.0345), (3.9, 1234), (-5, 5), (7, 7), (0, 0)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    steps = {round(b - a, 9) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1


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

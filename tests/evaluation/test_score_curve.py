"""The picture of a score over the weight of a mix."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageColor

from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.evaluation.score_curve import (
    BAND,
    BOTTOM,
    CARD,
    HEIGHT,
    INK,
    LEFT,
    RIGHT,
    SEEN,
    TOP,
    WIDTH,
    draw_scores,
)

SCORES = {
    beta: Interval(value=value, low=value - 0.1, high=value + 0.1) for beta, value in ((0, 0.2), (0.5, 0.6), (1, 0.4))
}


def test_where_the_curve_the_interval_and_the_best_are(tmp_path: Path) -> None:
    draw_scores(tmp_path / "curve.png", SCORES, title="a score", chosen=0.5)
    image = Image.open(tmp_path / "curve.png").convert("RGB")
    assert image.size == (WIDTH, HEIGHT)

    def colour(beta: float, value: float, right: int = 0, down: int = 0) -> tuple[int, ...]:
        """At a point of the plane, whose frame goes from 0 to 0.8 in round numbers."""
        x = LEFT + beta * (WIDTH - LEFT - RIGHT) + right
        y = HEIGHT - BOTTOM - value / 0.8 * (HEIGHT - TOP - BOTTOM) + down
        found = image.getpixel((round(x), round(y)))
        assert isinstance(found, tuple)
        return found

    def near(found: tuple[int, ...], expected: str) -> bool:
        return all(abs(a - b) < 24 for a, b in zip(found, ImageColor.getrgb(expected), strict=True))

    assert near(colour(0.25, 0.4), SEEN) and near(colour(0.75, 0.5), SEEN)
    assert near(colour(0.25, 0.47), BAND) and near(colour(0.25, 0.33), BAND)
    assert near(colour(0.25, 0.55), CARD) and near(colour(0.25, 0.25), CARD)
    assert near(colour(0.5, 0.6), CARD), "the best is a ring"
    assert near(colour(0.5, 0.6, down=-7), INK) and not near(colour(0, 0.2, right=7), INK)


def test_a_long_title_stays_inside(tmp_path: Path) -> None:
    for name, title in (
        ("short", "a score"),
        ("long", "a_long_name_of_a_score of beta * one_stage + (1 - beta) * another"),
    ):
        draw_scores(tmp_path / f"{name}.png", SCORES, title=title, chosen=1)
        image = Image.open(tmp_path / f"{name}.png").convert("L")
        margin = image.crop((WIDTH - RIGHT + 10, 0, WIDTH, TOP - 20))
        assert margin.getextrema() == (255, 255), name

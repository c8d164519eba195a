"""A score over the weight of a mix, with its interval, as a PNG. Colours are those of page.css."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.evaluation.figures import nice_ticks, number

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, BOTTOM = 84, 36, 70, 64
FINER = 2
"""Drawn so many times larger, then reduced: lines without steps."""
CARD, INK, SOFT, LINE, SEEN = "#ffffff", "#1d1f24", "#666a73", "#e5e3de", "#0d7a70"
BAND = "#cfe4e2"


def draw_scores(path: Path, scores: Mapping[float, Interval], *, title: str, chosen: float) -> None:
    """Writes the picture.

    Args:
        scores: Beta -> the score and its interval; at least two.
        title: In ASCII, which is what Pillow's own font has.
        chosen: The beta that is marked and named.
    """
    betas = sorted(scores)
    assert len(betas) > 1, betas
    first, last = betas[0], betas[-1]
    ticks = nice_ticks(min(each.low for each in scores.values()), max(each.high for each in scores.values()))
    bottom, top = ticks[0], ticks[-1]
    image = Image.new("RGB", (WIDTH * FINER, HEIGHT * FINER), CARD)
    draw = ImageDraw.Draw(image)
    small, large = (ImageFont.load_default(size * FINER) for size in (15, 19))
    room = (WIDTH - LEFT - RIGHT) * FINER
    large = large if draw.textlength(title, large) <= room else small

    def place(beta: float, value: float) -> tuple[float, float]:
        x = LEFT + (beta - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)
        return x * FINER, y * FINER

    def moved(point: tuple[float, float], right: float, down: float) -> tuple[float, float]:
        return point[0] + right * FINER, point[1] + down * FINER

    low = [place(beta, scores[beta].low) for beta in betas]
    high = [place(beta, scores[beta].high) for beta in betas]
    draw.polygon([*low, *reversed(high)], fill=BAND)
    for tick in ticks:
        draw.line([place(first, tick), place(last, tick)], fill=LINE, width=FINER)
        draw.text(moved(place(first, tick), -10, 0), number(tick), fill=SOFT, font=small, anchor="rm")
    for tick in nice_ticks(first, last, most=10):
        if first <= tick <= last:
            draw.text(moved(place(tick, bottom), 0, 18), number(tick), fill=SOFT, font=small, anchor="mm")
    draw.text(((LEFT + WIDTH - RIGHT) / 2 * FINER, (HEIGHT - 18) * FINER), "beta", fill=SOFT, font=small, anchor="mm")
    points = [place(beta, scores[beta].value) for beta in betas]
    draw.line(points, fill=SEEN, width=3 * FINER, joint="curve")
    for point in points:
        draw.ellipse([moved(point, -4, -4), moved(point, 4, 4)], fill=SEEN)
    best = place(chosen, scores[chosen].value)
    draw.ellipse([moved(best, -8, -8), moved(best, 8, 8)], fill=CARD, outline=INK, width=3 * FINER)
    name = f"beta {chosen:g}: {scores[chosen].value:.3f}"
    right = best[0] > WIDTH * FINER * 0.75
    draw.text(moved(best, -14 if right else 14, -20), name, fill=INK, font=small, anchor="rm" if right else "lm")
    draw.text((LEFT * FINER, 34 * FINER), title, fill=INK, font=large, anchor="lm")
    image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(path, format="PNG", optimize=True)

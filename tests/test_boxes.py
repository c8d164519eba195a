from __future__ import annotations

import random

import pytest

from lightning_mllm.boxes import (
    DIALECTS,
    Box,
    Malformed,
    dialect_of,
    iou,
    of_pixels,
    point_of_pixels,
    read,
    write,
    write_point,
)

FORMS = {
    "cogvlm": "[[125,250,500,999]]",
    "ferret": "[125, 250, 500, 1000]",
    "llava": "[0.13, 0.25, 0.50, 1.00]",
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_spells_a_box_in_its_form(dialect: str) -> None:
    assert write([Box(0.125, 0.25, 0.5, 1.0)], dialect) == FORMS[dialect]
    assert dialect_of(FORMS[dialect]) == dialect


def test_digits_are_kept_and_halves_go_up() -> None:
    box = Box(0.0004, 0.0005, 0.0625, 0.0124)
    assert write([box], "cogvlm") == "[[000,001,063,012]]"
    assert write([box], "ferret") == "[0, 1, 63, 12]"
    assert write([box], "llava") == "[0.00, 0.00, 0.06, 0.01]"
    assert write([Box(0.145, 0.285, 0.575, 0.995)], "llava") == "[0.15, 0.29, 0.58, 1.00]"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_written_is_read_within_half_a_step(dialect: str) -> None:
    draw, how = random.Random(0), DIALECTS[dialect]
    for _ in range(300):
        (x0, x1), (y0, y1) = (sorted(draw.uniform(0, 1) for _ in range(2)) for _ in range(2))
        boxes = [Box(x0, y0, x1, y1), Box(0.0, 0.0, 1.0, 1.0)]
        found = read(write(boxes, dialect), dialect)
        assert not isinstance(found, Malformed) and len(found) == 2
        # A box may be widened to one step, and 1 is no number of 000 to 999.
        most = 0.5 / how.grid if x1 - x0 > 1.5 / how.grid and y1 - y0 > 1.5 / how.grid else 1.5 / how.grid
        assert (
            max(abs(a - b) for a, b in zip(found[0], boxes[0], strict=True))
            <= max(most, 1 - how.last / how.grid) + 1e-9
        )
        # Read and written again, nothing changes.
        assert read(write(found, dialect), dialect) == found


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("at", [0.0, 0.3, 0.9999, 1.0])
def test_a_box_thinner_than_a_step_is_one_step_wide(dialect: str, at: float) -> None:
    found = read(write([Box(at, 0.2, at, 0.9)], dialect), dialect)
    assert not isinstance(found, Malformed)
    assert found[0].x1 - found[0].x0 == pytest.approx(1 / DIALECTS[dialect].grid)


def test_several_boxes_and_words_around_them() -> None:
    two = (Box(0.1, 0.2, 0.3, 0.4), Box(0.5, 0.5, 0.75, 0.75))
    assert write(two, "cogvlm") == "[[100,200,300,400;500,500,750,750]]"
    assert write(two, "ferret") == "[100, 200, 300, 400], [500, 500, 750, 750]"
    assert write(two, "llava") == "[0.10, 0.20, 0.30, 0.40], [0.50, 0.50, 0.75, 0.75]"
    for dialect in DIALECTS:
        assert read(write(two, dialect), dialect) == two
    assert read("a dog [[100,200,300,400]] and a cat [[500,500,750,750]].", "cogvlm") == two
    assert read("it is at [ 100,200, 300 ,400 ]", "ferret") == two[:1]


@pytest.mark.parametrize(
    ("text", "dialect", "reason"),
    [
        ("", "cogvlm", "found no brackets, expected [[x0,y0,x1,y1]]"),
        ("on the left", "llava", "found no brackets, expected [0.00, 0.00, 1.00, 1.00]"),
        ("[[100,200,300]]", "cogvlm", "found '100,200,300', expected 4 numbers as in [[x0,y0,x1,y1]]"),
        ("[1, 2, 3, 4, 5]", "ferret", "found '1, 2, 3, 4, 5', expected 4 numbers as in [x0, y0, x1, y1]"),
        ("[[100,200,x,400]]", "cogvlm", "found 'x', expected a number as in [[x0,y0,x1,y1]]"),
        ("[[]]", "cogvlm", "found '', expected a number as in [[x0,y0,x1,y1]]"),
        ("[[100,200,300,1000]]", "cogvlm", "found 1000, expected numbers of 0 to 999"),
        ("[-1, 200, 300, 400]", "ferret", "found -1, expected numbers of 0 to 1000"),
        ("[0.1, 0.2, 0.3, 1.01]", "llava", "found 1.01, expected numbers of 0 to 1"),
        ("[[0.1,0.2,0.3,0.4]]", "cogvlm", "found 0.1, expected whole numbers of 0 to 999"),
        ("[[300,200,300,400]]", "cogvlm", "found x1 300 and x0 300, expected x1 above x0"),
        ("[0.1, 0.5, 0.3, 0.4]", "llava", "found y1 0.4 and y0 0.5, expected y1 above y0"),
        ("[100, 200, 300, 400]", "cogvlm", "found '[100, 200, 300, 400]', expected [[x0,y0,x1,y1]]"),
        ("[[100,200,300,400]]", "ferret", "found '[[100,200,300,400]]', expected [x0, y0, x1, y1]"),
        ("[[100,200,300,400]] [[5", "cogvlm", "found '[[5', expected [[x0,y0,x1,y1]]"),
        ("[[100,200,300,400;5]]", "cogvlm", "found '5', expected 4 numbers as in [[x0,y0,x1,y1]]"),
    ],
)
def test_what_is_no_box_has_one_reason(text: str, dialect: str, reason: str) -> None:
    assert read(text, dialect) == Malformed(reason)


def test_a_text_that_is_no_box_is_in_no_dialect() -> None:
    assert [dialect_of(text) for text in ("red", "[1]", "[[1,2,3,4]", "[0.1, 0.2, 2.5, 0.4]")] == [None] * 4


def test_unknown_dialects() -> None:
    with pytest.raises(ValueError, match="dialect: found 'cog', expected one of cogvlm, ferret, llava"):
        write([Box(0, 0, 1, 1)], "cog")


def test_pixels_are_shares_of_the_image_or_of_its_square() -> None:
    assert of_pixels(64, 48, 320, 240, 640, 480) == Box(0.1, 0.1, 0.6, 0.6)
    # A wide image is padded above and below: 80 pixels each.
    assert of_pixels(64, 48, 320, 240, 640, 480, "square") == Box(0.1, 0.2, 0.6, 0.575)
    # A tall one left and right.
    assert of_pixels(0, 0, 50, 200, 100, 200, "square") == Box(0.25, 0.0, 0.5, 1.0)


def test_points_are_spelled_like_boxes() -> None:
    x, y = point_of_pixels(160, 120, 640, 480, "square")
    assert (x, y) == (0.25, 0.3125) and point_of_pixels(160, 120, 640, 480) == (0.25, 0.25)
    assert {dialect: write_point(x, y, dialect) for dialect in DIALECTS} == {
        "cogvlm": "[[250,313]]",
        "ferret": "[250, 313]",
        "llava": "[0.25, 0.31]",
    }


def test_what_stands_over_the_edge_is_cut_off() -> None:
    assert of_pixels(-10, 5, 30, 200, 100, 100) == Box(0.0, 0.05, 0.2, 1.0)


@pytest.mark.parametrize(
    ("box", "size", "sentence"),
    [
        ((10, 10, 0, 5), (100, 100), r"the box \[10, 10, 0, 5\] .* has no area inside the image of 100 x 100 pixels"),
        ((100, 0, 5, 5), (100, 100), "has no area inside the image"),
        ((0, 0, -5, 5), (100, 100), "has no area inside the image"),
        ((0, 0, 5, 5), (0, 100), "the image is 0 x 100 pixels, expected at least 1 x 1"),
        ((0, 0, float("inf"), 5), (9, 9), "expected finite numbers"),
    ],
)
def test_boxes_that_are_none(box: tuple[float, float, float, float], size: tuple[int, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        of_pixels(*box, *size)


def test_intersection_over_union_by_hand() -> None:
    one = Box(0.0, 0.0, 0.5, 0.5)
    assert iou(one, one) == 1.0
    assert iou(one, Box(0.25, 0.0, 0.75, 0.5)) == pytest.approx(1 / 3)  # 0.125 of 0.375
    assert iou(one, Box(0.25, 0.25, 0.75, 0.75)) == pytest.approx(1 / 7)  # 0.0625 of 0.4375
    assert iou(one, Box(0.5, 0.0, 1.0, 0.5)) == 0.0
    assert iou(one, Box(0.0, 0.0, 1.0, 1.0)) == 0.25

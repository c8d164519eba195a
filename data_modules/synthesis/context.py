"""What is known of a picture as text, as LLaVA gave it to GPT-4 (arXiv 2304.08485, sec. 3)."""

from __future__ import annotations

from data_modules.synthesis.request import Context, NamedBox

COLUMNS = ("left", "", "right")
ROWS = ("top", "", "bottom")
CROWD = " (crowd)"
"""Behind the name of a box that is around several things."""


def write_context(context: Context, *, boxes: bool) -> str:
    """The captions, one a line; then, where `boxes`, a blank line and a line for each box, in their order.

    A box is `name: [x0, y0, x1, y1]`, shares of width and height with three decimals; `name (crowd): [...]` where it is
    around several things that were not told apart.
    """
    captions = "\n".join(" ".join(caption.split()) for caption in context.captions)
    lines = "\n".join(map(box_line, context.boxes))
    return "\n\n".join(part for part in (captions, lines if boxes else "") if part)


def box_line(box: NamedBox) -> str:
    """'dog: [0.120, 0.300, 0.455, 0.987]'."""
    return f"{box.name}{CROWD if box.crowd else ''}: [{', '.join(f'{value:.3f}' for value in box.box)}]"


def place(box: NamedBox) -> str:
    """The third of the picture in which the middle of a box is: 'top left', 'top', ..., 'middle'."""
    x, y = (box.box[0] + box.box[2]) / 2, (box.box[1] + box.box[3]) / 2
    parts = ROWS[min(int(y * 3), 2)], COLUMNS[min(int(x * 3), 2)]
    return " ".join(part for part in parts if part) or "middle"


def at(where: str) -> str:
    """'at the top left', 'in the middle', 'on the left'."""
    if where == "middle":
        return "in the middle"
    return f"{'on' if where in ('left', 'right') else 'at'} the {where}"

"""What a scene is: up to five shapes in a grid of places, three by three unless a world is finer, on a background.

Every random choice comes from the generator that is passed in, so a scene is a pure function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 38, 38),
    "orange": (245, 140, 30),
    "yellow": (248, 220, 50),
    "green": (45, 165, 70),
    "cyan": (50, 205, 225),
    "blue": (45, 75, 225),
    "purple": (140, 50, 190),
    "pink": (250, 135, 195),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
TONES = ("white", "grey", "dark")
PATTERNS = ("plain", "shaded", "striped", "checked", "speckled")
WORDS = ("cat", "dog", "sun", "map", "box", "key", "owl", "tea", "jam", "sky", "hat", "pen")
COLUMNS = ("left", "", "right")
ROWS = ("top", "", "bottom")

NOVEL_PAIRS = frozenset(
    {
        ("purple", "circle"),
        ("cyan", "square"),
        ("orange", "triangle"),
        ("green", "star"),
        ("pink", "cross"),
        ("yellow", "ring"),
    }
)
"""Colour-shape pairs that are never drawn, written or asked about outside the novel part of the test."""

COUNTS = {1: 3, 2: 4, 3: 3, 4: 2, 5: 1}
"""Things in a scene -> how often, relative to one another."""
MOST = max(COUNTS)
GRID = 3
"""Places in a row and in a column, unless a world is finer."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One drawn shape; `column` and `row` are its place in the grid, `dx` and `dy` its offset in parts of a place."""

    colour: str
    shape: str
    size: str
    column: int
    row: int
    dx: float = 0.0
    dy: float = 0.0
    grid: int = GRID
    """Places in a row and in a column of the picture."""

    @property
    def place(self) -> str:
        """The third of the picture: 'top left', 'top', ..., 'middle'."""
        row, column = ROWS[self.row * len(ROWS) // self.grid], COLUMNS[self.column * len(COLUMNS) // self.grid]
        return " ".join(part for part in (row, column) if part) or "middle"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture to be drawn and described."""

    things: tuple[Thing, ...]
    tone: str
    pattern: str
    word: str = ""
    word_place: tuple[int, int] = (0, 0)
    """Column and row of the written word."""
    grid: int = GRID


def draw_scene(random: Random, *, novel: bool, words: float = 0.0, most: int = MOST, grid: int = GRID) -> Scene:
    """A random scene of one to `most` things, all in different places.

    Attributes repeat within a scene half of the time, so that counting and comparing mean something.

    Args:
        novel: at least one thing is a pair of `NOVEL_PAIRS`; otherwise none is.
        words: probability of a written word.
        most: things there may be; at least one.
        grid: places in a row and in a column.
    """
    counts = [count for count in COUNTS if count <= most]
    (count,) = random.choices(counts, weights=[COUNTS[count] for count in counts])
    places = random.sample([(column, row) for column in range(grid) for row in range(grid)], count + 1)
    colours = random.sample(list(COLOURS), random.randint(1, 3)) if random.random() < 0.5 else list(COLOURS)
    shapes = random.sample(SHAPES, random.randint(1, 3)) if random.random() < 0.5 else SHAPES
    novel_at = random.randrange(count) if novel else -1
    things = []
    for index, (column, row) in enumerate(places[:count]):
        if index == novel_at:
            colour, shape = random.choice(sorted(NOVEL_PAIRS))
        else:
            colour, shape = random.choice(colours), random.choice(shapes)
            while (colour, shape) in NOVEL_PAIRS and not novel:
                colour, shape = random.choice(list(COLOURS)), random.choice(shapes)
        size = random.choice(SIZES)
        reach = 0.16 if size == "small" else 0.05
        dx, dy = random.uniform(-reach, reach), random.uniform(-reach, reach)
        things.append(Thing(colour=colour, shape=shape, size=size, column=column, row=row, dx=dx, dy=dy, grid=grid))
    word = random.choice(WORDS) if random.random() < words else ""
    return Scene(
        things=tuple(things),
        tone=random.choice(TONES),
        pattern=random.choice(PATTERNS),
        word=word,
        word_place=places[count],
        grid=grid,
    )

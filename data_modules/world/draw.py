"""Scenes as pixels: drawn three times too large, then averaged down, so that edges are smooth and bytes repeatable."""

from __future__ import annotations

import math
from random import Random

from PIL import Image, ImageDraw, ImageFont

from data_modules.world.scene import COLOURS, Scene, Thing

OVERSAMPLING = 3
TONE_VALUES = {"white": 240, "grey": 150, "dark": 45}
DIAMETERS = {"small": 0.54, "large": 0.88}
"""Width of a thing in parts of its place."""

Box = tuple[float, float, float, float]


def thing_box(thing: Thing, size: int) -> Box:
    """The true box (x, y, width, height) of a thing in an image of `size` pixels."""
    place = size / thing.grid
    diameter = DIAMETERS[thing.size] * place
    x = (thing.column + 0.5 + thing.dx) * place - diameter / 2
    y = (thing.row + 0.5 + thing.dy) * place - diameter / 2
    return x, y, diameter, diameter


def crop(picture: Image.Image, thing: Thing) -> tuple[Image.Image, list[Box]]:
    """The place of a thing, cut out of a picture of it, and its box there."""
    place = picture.width // thing.grid
    left, top = thing.column * place, thing.row * place
    x, y, width, height = thing_box(thing, picture.width)
    return picture.crop((left, top, left + place, top + place)), [(x - left, y - top, width, height)]


def _polygon(centre: tuple[float, float], radius: float, radii: list[float], start: float) -> list[tuple[float, float]]:
    steps = len(radii)
    angles = [start + 2 * math.pi * step / steps for step in range(steps)]
    return [
        (centre[0] + radius * r * math.cos(angle), centre[1] + radius * r * math.sin(angle))
        for angle, r in zip(angles, radii, strict=True)
    ]


def draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing, size: int, fill: tuple[int, int, int] | int) -> None:
    """The thing in a picture of `size` pixels, in a colour or a grey."""
    x, y, width, _ = thing_box(thing, size)
    centre, radius = (x + width / 2, y + width / 2), width / 2
    box = (x, y, x + width, y + width)
    match thing.shape:
        case "circle":
            canvas.ellipse(box, fill=fill)
        case "ring":
            canvas.ellipse(box, outline=fill, width=max(1, round(radius * 0.5)))
        case "square":
            inset = width * 0.06
            canvas.rectangle((x + inset, y + inset, x + width - inset, y + width - inset), fill=fill)
        case "triangle":
            canvas.polygon(
                _polygon((centre[0], centre[1] + radius * 0.15), radius * 1.1, [1.0] * 3, -math.pi / 2), fill
            )
        case "star":
            canvas.polygon(_polygon(centre, radius * 1.08, [1.0, 0.42] * 5, -math.pi / 2), fill)
        case "cross":
            arm = width * 0.34
            canvas.rectangle((centre[0] - arm / 2, y, centre[0] + arm / 2, y + width), fill=fill)
            canvas.rectangle((x, centre[1] - arm / 2, x + width, centre[1] + arm / 2), fill=fill)


def _background(scene: Scene, size: int, random: Random) -> Image.Image:
    value = TONE_VALUES[scene.tone] + random.randint(-12, 12)
    tint = [value + random.randint(-8, 8) for _ in range(3)]
    other = [channel + (24 if value < 128 else -24) for channel in tint]
    image = Image.new("RGB", (size, size), tuple(tint))
    canvas = ImageDraw.Draw(image)
    step = max(2, size // random.choice((8, 10, 12)))
    match scene.pattern:
        case "shaded":
            mask = Image.linear_gradient("L").resize((size, size))
            image.paste(Image.new("RGB", (size, size), tuple(other)), mask=mask)
        case "striped":
            for start in range(0, size, 2 * step):
                canvas.rectangle((0, start, size, start + step - 1), fill=tuple(other))
        case "checked":
            for x in range(0, size, step):
                for y in range((x // step) % 2 * step, size, 2 * step):
                    canvas.rectangle((x, y, x + step - 1, y + step - 1), fill=tuple(other))
        case "speckled":
            dot = max(1, size // 48)
            for _ in range(60):
                x, y = random.randrange(size), random.randrange(size)
                canvas.rectangle((x, y, x + dot, y + dot), fill=tuple(other))
    return image


def draw(scene: Scene, size: int, random: Random) -> Image.Image:
    """The picture of `scene`: RGB, `size` x `size` pixels; `random` gives the shades, never the content."""
    large = size * OVERSAMPLING
    image = _background(scene, large, random)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        base = COLOURS[thing.colour]
        red, green, blue = (min(255, max(0, channel + random.randint(-14, 14))) for channel in base)
        draw_thing(canvas, thing, large, (red, green, blue))
    if scene.word:
        write_word(canvas, scene, large)
    return image.reduce(OVERSAMPLING)


def write_word(canvas: ImageDraw.ImageDraw, scene: Scene, size: int) -> None:
    """The scene's word in a picture of `size` pixels."""
    column, row = scene.word_place
    ink = (250, 250, 250) if scene.tone == "dark" else (10, 10, 10)
    middle = ((column + 0.5) * size / scene.grid, (row + 0.5) * size / scene.grid)
    font = ImageFont.load_default(size / scene.grid * 0.55)
    canvas.text(middle, scene.word, fill=ink, font=font, anchor="mm")

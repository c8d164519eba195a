"""The same scenes as if photographed, and what web pages would say beside them: another domain of pictures and texts.

Backgrounds are clouds of two shades, things are hatched, grainy or lit from one side and throw a shadow, and all of it
is grainy. Texts are file names, key words and tags: short, of some of the things only, without places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from data_modules.world.captions import plural
from data_modules.world.draw import OVERSAMPLING, TONE_VALUES, draw_thing, write_word
from data_modules.world.scene import COLOURS, Scene, Thing

Colour = tuple[int, int, int]
DARKEST, LIGHTEST = 0.68, 1.04
"""Of a thing's colour."""
GRAIN = 0.07
"""How much of a picture is noise."""


def paint(scene: Scene, size: int, random: Random) -> Image.Image:
    """The picture of `scene`: RGB, `size` x `size` pixels; `random` gives shades and textures, never the content."""
    value = TONE_VALUES[scene.tone]
    dark, light = (_shade([value + random.randint(-24, 24) for _ in range(3)], factor) for factor in (0.8, 1.15))
    image = _mixed(dark, light, Image.blend(_noise(size, 3, random), _noise(size, 9, random), 0.35))
    for thing in scene.things:
        outline = _outline(thing, size)
        shadow = ImageChops.offset(outline, size // 36, size // 36).filter(ImageFilter.GaussianBlur(size / 72))
        image.paste(Image.new("RGB", image.size), mask=shadow.point([level // 3 for level in range(256)]))
        base, factor = COLOURS[thing.colour], random.uniform(0.95, 1.05)
        dark, light = _shade(base, factor * DARKEST), _shade(base, factor * LIGHTEST)
        image.paste(_mixed(dark, light, random.choice(TEXTURES)(size, random)), mask=outline)
    if scene.word:
        write_word(ImageDraw.Draw(image), scene, size)
    grain = Image.merge("RGB", [_noise(size, size, random)] * 3)
    return Image.blend(image, grain, GRAIN)


def _shade(colour: Sequence[int], factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def _mixed(dark: Colour, light: Colour, mask: Image.Image) -> Image.Image:
    return Image.composite(Image.new("RGB", mask.size, light), Image.new("RGB", mask.size, dark), mask)


def _noise(side: int, cells: int, random: Random) -> Image.Image:
    """Grey levels, independent in `cells` x `cells` cells and smooth between them."""
    levels = Image.frombytes("L", (cells, cells), random.randbytes(cells * cells))
    return levels.resize((side, side), Image.Resampling.BICUBIC)


def _outline(thing: Thing, size: int) -> Image.Image:
    """White where the thing is."""
    large = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
    draw_thing(ImageDraw.Draw(large), thing, size * OVERSAMPLING, 255)
    return large.reduce(OVERSAMPLING)


def _hatched(side: int, random: Random) -> Image.Image:
    """Diagonal lines."""
    image, step = Image.new("L", (side, side), 255), random.choice((3, 4))
    canvas, down = ImageDraw.Draw(image), random.random() < 0.5
    for start in range(-side, side, step):
        ends = ((start, 0), (start + side, side)) if down else ((start, side), (start + side, 0))
        canvas.line(ends, fill=40)
    return image


def _grainy(side: int, random: Random) -> Image.Image:
    return _noise(side, side // 2, random)


def _lit(side: int, random: Random) -> Image.Image:
    """Light from one side, once over each of the places of a picture of three."""
    place = Image.linear_gradient("L").resize((side // 3, side // 3)).rotate(90 * random.randrange(4))
    image = Image.new("L", (side, side), 128)
    for column in range(0, side, place.width):
        for row in range(0, side, place.height):
            image.paste(place, (column, row))
    return image


TEXTURES: tuple[Callable[[int, Random], Image.Image], ...] = (_hatched, _grainy, _lit)


def alt_texts(scene: Scene, random: Random) -> list[str]:
    """Five true texts, differently worded, lower case, none of which tells the whole scene."""
    things = random.sample(scene.things, len(scene.things))
    some = things[: random.randint(1, 2)]
    named = [f"{thing.colour} {thing.shape}" for thing in some]
    first, other = random.choice(things), random.choice(things)
    return [
        f"img_{random.randint(100, 999)} {'_'.join(name.replace(' ', '-') for name in named)}.jpg",
        f"{', '.join(named)} - stock photo",
        f"#{first.shape} #{first.colour}",
        f"{first.colour} {plural(first.shape)} for sale",
        f"best {other.size} {other.shape} picture {random.randint(1, 9)}",
    ]

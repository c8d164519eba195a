"""The same scenes as if photographed, and what web pages would say beside them: another domain of pictures and texts.

Backgrounds are clouds of two shades, things are hatched, grainy or lit from one side and throw a shadow, and all of it
is blurred and noisy. Texts are file names, key words and tags: short, of some of the things only, without places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from data_modules.world.captions import plural
from data_modules.world.draw import OVERSAMPLING, TONE_VALUES, draw_thing, write_word
from data_modules.world.scene import COLOURS, Scene, Thing

Colour = tuple[int, int, int]
GRAIN = 0.2
"""How much of a picture is noise. With so much, the shipped CLIP, which learned from drawn pictures, finds the caption
among those of 200 textured scenes for 68 % of them; for 92 % of the same scenes drawn."""


def paint(scene: Scene, size: int, random: Random) -> Image.Image:
    """The picture of `scene`: RGB, `size` x `size` pixels; `random` gives shades and textures, never the content."""
    value = TONE_VALUES[scene.tone]
    dark, light = (_shade([value + random.randint(-30, 30) for _ in range(3)], factor) for factor in (0.65, 1.25))
    image = _mixed(dark, light, Image.blend(_noise(size, 4, random), _noise(size, 12, random), 0.5))
    for thing in scene.things:
        outline = _outline(thing, size)
        shadow = ImageChops.offset(outline, size // 30, size // 30).filter(ImageFilter.GaussianBlur(size / 60))
        image.paste(Image.new("RGB", image.size), mask=shadow.point([level // 2 for level in range(256)]))
        random.choice(TEXTURES)(image, outline, COLOURS[thing.colour], random)
    if scene.word:
        write_word(ImageDraw.Draw(image), scene, size)
    grain = Image.merge("RGB", [_noise(size, size, random) for _ in range(3)])
    return Image.blend(image.filter(ImageFilter.GaussianBlur(size / 120)), grain, GRAIN)


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


def _hatched(image: Image.Image, outline: Image.Image, colour: Colour, random: Random) -> None:
    """Diagonal lines, between which the background is seen."""
    side, step = image.width * OVERSAMPLING, random.choice((3, 4, 5)) * OVERSAMPLING
    lines, down = Image.new("L", (side, side), 64), random.random() < 0.5
    canvas = ImageDraw.Draw(lines)
    for start in range(-side, side, step):
        ends = ((start, 0), (start + side, side)) if down else ((start, side), (start + side, 0))
        canvas.line(ends, fill=255, width=step // 2)
    shade = Image.new("RGB", image.size, _shade(colour, random.uniform(0.85, 1.05)))
    image.paste(shade, mask=ImageChops.multiply(outline, lines.reduce(OVERSAMPLING)))


def _grainy(image: Image.Image, outline: Image.Image, colour: Colour, random: Random) -> None:
    texture = _noise(image.width, image.width // 3, random)
    image.paste(_mixed(_shade(colour, 0.45), _shade(colour, 1.05), texture), mask=outline)


def _lit(image: Image.Image, outline: Image.Image, colour: Colour, random: Random) -> None:
    """Light from one side."""
    box = outline.getbbox()
    assert box is not None
    width, height = box[2] - box[0], box[3] - box[1]
    light = Image.linear_gradient("L").rotate(90 * random.randrange(4)).resize((width, height))
    image.paste(_mixed(_shade(colour, 0.4), _shade(colour, 1.05), light), box, outline.crop(box))


TEXTURES: tuple[Callable[[Image.Image, Image.Image, Colour, Random], None], ...] = (_hatched, _grainy, _lit)
"""Each fills an outline with a colour."""


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

"""Laws of the other worlds: textured ones tell of the same scenes, fine ones keep their words and questions true."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from data_modules.world.captions import captions, describe
from data_modules.world.draw import DIAMETERS, draw, draw_thing, thing_box
from data_modules.world.grounding import things_of
from data_modules.world.questions import KINDS, Balance, ask, refer
from data_modules.world.scene import COLOURS, NOVEL_PAIRS, SHAPES, TONES, Scene, Thing, draw_scene
from data_modules.world.textured import GRAIN, TEXTURES, alt_texts, paint
from data_modules.world.write import Settings, main, write_world
from tests.data_modules.world.test_world import digest, read

DRAWN = Settings(images=24, seed=3, texts=8, words=0.5)
TEXTURED = Settings(images=24, seed=3, texts=8, words=0.5, style="textured")
FINE = Settings(images=80, seed=1, texts=8, size=144, grid=6)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    for name, settings in {"drawn": DRAWN, "textured": TEXTURED, "fine": FINE}.items():
        write_world(folder / name, settings)
    return folder


def scenes(number: int, grid: int = 3, seed: int = 0) -> list[Scene]:
    random = Random(seed)
    return [draw_scene(random, novel=k % 5 == 0, words=0.3, grid=grid) for k in range(number)]


# ---- textured ---------------------------------------------------------------------------------------------------


def test_textured_and_drawn_worlds_differ_in_pictures_and_captions_alone(worlds: Path) -> None:
    drawn, textured = digest(worlds / "drawn"), digest(worlds / "textured")
    assert set(drawn) == set(textured)
    other = {name for name in drawn if drawn[name] != textured[name]}
    texts = ("coco/captions_", "coco/dense_")
    expected = {name for name in drawn if name.endswith(".png") or name.startswith(texts)}
    assert other == expected | {"world.json"}
    found = read(worlds / "textured", "world.json")
    assert found == {**read(worlds / "drawn", "world.json"), "style": "textured"}


def test_a_picture_is_repeatable_and_not_that_of_another_seed() -> None:
    (scene,) = scenes(1)
    first, again, other = (paint(scene, 72, Random(seed)).tobytes() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("texture", TEXTURES, ids=lambda texture: texture.__name__)
@pytest.mark.parametrize("size", ["small", "large"])
def test_things_have_their_colours(texture, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the eight colours the most coloured of a thing's pixels are nearest to its own, on every background."""
    monkeypatch.setattr("data_modules.world.textured.TEXTURES", (texture,))
    names = list(COLOURS)
    table = np.array([COLOURS[name] for name in names], dtype=float)
    for number, colour in enumerate(names):
        for seed, tone in enumerate(TONES):
            shape = SHAPES[(number + seed) % len(SHAPES)]
            thing = Thing(colour=colour, shape=shape, size=size, column=1, row=2)
            picture = np.asarray(paint(Scene(things=(thing,), tone=tone, pattern="plain"), 144, Random(seed)), float)
            mask = Image.new("L", (144, 144))
            draw_thing(ImageDraw.Draw(mask), thing, 144, 1)
            pixels = picture[np.asarray(mask.filter(ImageFilter.MinFilter(3))) == 1]
            pixels = (pixels - GRAIN * 127.5) / (1 - GRAIN)
            chroma = pixels.max(1) - pixels.min(1)
            mean = pixels[chroma >= np.quantile(chroma, 0.7)].mean(0)
            # Of light and dark of one colour the direction counts, not the length.
            cosine = (table @ mean) / np.linalg.norm(table, axis=1)
            assert names[int(np.argmax(cosine))] == colour, (colour, shape, tone, mean)


def test_texts_of_the_web_are_true_and_leave_much_out() -> None:
    for scene in scenes(200):
        texts = alt_texts(scene, Random(1))
        assert len(set(texts)) == 5
        words = " ".join(texts).replace("-", " ").replace("_", " ").replace("#", " ").replace(".", " ").split()
        present = {thing.colour for thing in scene.things} | {thing.shape for thing in scene.things}
        singular = {word.removesuffix("es") if word == "crosses" else word.removesuffix("s") for word in words}
        assert singular & (set(COLOURS) | set(SHAPES)) <= {word.removesuffix("s") for word in present} | present
        assert not singular & {"left", "right", "top", "bottom", "middle", "background"}
        # The pairs that are never told outside the novel part are not told by chance either.
        pairs = {(thing.colour, thing.shape) for thing in scene.things}
        told = {(colour, shape) for colour, shape in NOVEL_PAIRS if f"{colour} {shape}" in " ".join(texts)}
        assert told <= pairs
        longest = max(len(text.split()) for text in texts)
        assert longest <= 7 < len(describe(scene, Random(0)).split()) + 4


# ---- fine -------------------------------------------------------------------------------------------------------


def test_places_in_words_are_thirds_of_the_picture() -> None:
    def place(column: int, row: int, grid: int) -> str:
        return Thing(colour="red", shape="star", size="small", column=column, row=row, grid=grid).place

    for column in range(6):
        for row in range(6):
            assert place(column, row, 6) == place(column // 2, row // 2, 3)
    assert place(4, 4, 9) == "middle" and place(8, 0, 9) == "top right"


def test_things_of_a_fine_world_are_half_as_large_and_where_they_are_said_to_be(worlds: Path) -> None:
    content = read(worlds / "fine", "coco/instances_train.json")
    assert content["info"]["grid"] == 6 == read(worlds / "fine", "world.json")["grid"]
    assert "grid" not in read(worlds / "drawn", "coco/instances_train.json")["info"]
    columns: Counter[int] = Counter()
    for image in content["images"]:
        assert (image["width"], image["height"]) == (144, 144)
        instances = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        things = things_of(instances, 144, 6)
        for instance, thing in zip(instances, things, strict=True):
            assert instance["bbox"][2] == round(DIAMETERS[thing.size] * 24, 2)
            x, y, width, height = instance["bbox"]
            assert 24 * thing.column <= x + 1 and x + width <= 24 * (thing.column + 1) + 1
            assert 24 * thing.row <= y + 1 and y + height <= 24 * (thing.row + 1) + 1
        assert len({(thing.column, thing.row) for thing in things}) == len(things)
        columns.update(thing.column for thing in things)
    assert set(columns) == set(range(6))
    said = read(worlds / "fine", "grounding/captions_train.json")
    for text in said["images"]:
        instances = [each for each in content["annotations"] if each["image_id"] == text["original_id"]]
        for thing in things_of(instances, 144, 6):
            assert f"{thing.size} {thing.colour} {thing.shape}" in text["caption"] and thing.place in text["caption"]


def test_boxes_of_a_fine_picture_are_true() -> None:
    thing = Thing(colour="red", shape="square", size="large", column=4, row=1, grid=6)
    image = np.asarray(draw(Scene(things=(thing,), tone="dark", pattern="plain", grid=6), 144, Random(0))).astype(int)
    rows, columns = np.nonzero((image[..., 0] > 150) & (image[..., 1] < 90))
    x, y, width, height = thing_box(thing, 144)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.allclose(found, (x, y, x + width, y + height), atol=2.5)


def test_a_thing_is_called_by_a_place_that_it_has_alone() -> None:
    shared = [Thing(colour="red", shape="star", size="small", column=k, row=0, grid=6) for k in (0, 1)]
    alone = Thing(colour="red", shape="star", size="small", column=5, row=0, grid=6)
    things = [*shared, alone]
    assert [refer(things, thing, frozenset()) for thing in things] == [[], [], ["thing at the top right"]]


def test_questions_about_a_fine_scene_never_contradict_each_other() -> None:
    asked: Counter[str] = Counter()
    random = Random(0)
    for scene in scenes(40, grid=6):
        answers: dict[str, str] = {}
        for _ in range(2):
            for question in ask(scene, 9, Balance(), random):
                assert answers.setdefault(question.text, question.answer) == question.answer
                asked[question.kind] += 1
        assert len(captions(scene, random)) == 5
    assert set(asked) == set(KINDS) and min(asked.values()) > 10


# ---- settings ---------------------------------------------------------------------------------------------------


def test_a_world_of_before_is_still_known(worlds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(read(worlds / "drawn", "world.json")) == {
        *("images", "seed", "texts", "size", "crops", "words", "format"),
    }
    for name, settings in (("drawn", DRAWN), ("textured", TEXTURED), ("fine", FINE)):
        write_world(worlds / name, settings)
        assert "already holds this world" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds something else"):
        write_world(worlds / "textured", DRAWN)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--style", "painted"], "--style: found 'painted', expected drawn or textured"),
        (["--grid", "4"], "--grid: found 4, expected a multiple of 3"),
        (["--grid", "6", "--size", "60"], "--size: found 60, expected at least 64"),
        (["--grid", "6", "--size", "140", "--crops"], "a multiple of 6 to cut places out of"),
    ],
)
def test_settings_out_of_range(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        main([str(tmp_path / "world"), "--images", "8", *arguments])
    assert not (tmp_path / "world").exists()


def test_the_program_takes_style_and_grid(tmp_path: Path) -> None:
    main([str(tmp_path / "w"), "--images", "8", "--style", "textured", "--grid", "6", "--size", "144", "--crops"])
    assert json.loads((tmp_path / "w/world.json").read_text()) == {
        **{"images": 8, "seed": 0, "texts": 4, "size": 144, "crops": True, "words": 0.0, "format": 2},
        **{"style": "textured", "grid": 6},
    }
    with Image.open(next((tmp_path / "w/images/train").iterdir())) as picture:
        assert picture.size == (24, 24)

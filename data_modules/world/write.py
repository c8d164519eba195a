"""Writes a small world: COCO captions and instances, VQAv2 questions and annotations, LLaVA conversations, plain text.

    DIR/world.json                                   what was drawn: counts, seed, settings
    DIR/images/SPLIT/000000000001.png                pictures
    DIR/coco/{captions,instances}_SPLIT.json         five captions an image; true boxes
    DIR/coco/{dense,short}_SPLIT.json                one caption an image: all that is there; one thing of it
    DIR/grounding/{refs,captions}_SPLIT.json         phrases that mean one thing; captions with boxes
    DIR/grounding/conversations_SPLIT.json           those of llava/ in which boxes are asked for as well
    DIR/grounding/relationships_SPLIT.json           pairs of things, with the sizes in image_data_SPLIT.json
    DIR/vqa/{questions,annotations}_SPLIT.json       VQAv2, ten equal answers a question
    DIR/llava/conversations_SPLIT.json               image + several turns of questions, sometimes a description
    DIR/text/conversations_SPLIT.json                the same kind of turns about scenes that are only written
    DIR/text/questions_SPLIT.json                    written scenes again, one question a conversation
    DIR/text/corpus_SPLIT.jsonl                      plain documents, {"id", "text"}
    DIR/text/readings_SPLIT.jsonl                    other written scenes: captions and questions, {"id", "captions",
                                                     "questions": [{"kind", "question", "answer"}]}

A world of crops has one thing a picture, cut out at its place, and of the files those of COCO. A textured world differs
from the drawn one of the same settings in its pictures and COCO captions alone. A fine world has smaller things in more
places; places in words are thirds of the picture all the same.

Splits are train, val, test and test_novel; only test_novel holds the colour-shape pairs of `scene.NOVEL_PAIRS`.
The bytes are a pure function of the arguments: each chunk of scenes has its own generator, whoever draws it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import NoReturn

from rich.progress import track

from data_modules.world import dense_captions, grounding
from data_modules.world.captions import article, captions, describe, name
from data_modules.world.draw import crop, draw, thing_box
from data_modules.world.questions import Balance, ask
from data_modules.world.records import Json, caption_records, instance_records, turns, vqa_records
from data_modules.world.scene import GRID, MOST, SHAPES, Scene, draw_scene
from data_modules.world.textured import alt_texts, paint

SHARES = {"train": 0.85, "val": 0.05, "test": 0.05, "test_novel": 0.05}
QUESTIONS = 6
"""Of an image in VQAv2's format."""
TURNS = 10
"""Questions of a conversation."""
CHUNK = 250
FORMAT = 2
"""Raised whenever the same arguments would give other bytes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a world is made from."""

    images: int
    seed: int
    texts: int
    size: int = 72
    """Side of the pictures, pixels."""
    crops: bool = False
    """Whether a picture is one thing alone, cut out at its place: a side of `size` / `grid` pixels."""
    words: float = 0.0
    """Share of the pictures with a written word."""
    format: int = FORMAT
    style: str = "drawn"
    """'drawn' or 'textured'."""
    grid: int = GRID
    """Places in a row and in a column of a picture; a multiple of three."""

    @property
    def card(self) -> Json:
        """What world.json holds: settings that are as old as it is, and of the others those that are not the usual."""
        usual = {"style": "drawn", "grid": GRID}
        return {name: value for name, value in asdict(self).items() if usual.get(name) != value}

    def counts(self, total: int) -> dict[str, int]:
        """How many of `total` each split gets; at least one."""
        counts = {split: max(1, round(total * share)) for split, share in SHARES.items()}
        counts["train"] = max(1, total - sum(counts[split] for split in SHARES if split != "train"))
        return counts


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A run of scenes that one process draws."""

    settings: Settings
    split: str
    kind: str
    """'images', 'texts' or 'readings'."""
    start: int
    count: int
    folder: Path

    @property
    def random(self) -> Random:
        return Random(f"{self.settings.seed}/{self.settings.format}/{self.kind}/{self.split}/{self.start}")

    def scenes(self, random: Random) -> Iterator[tuple[int, Scene]]:
        for index in range(self.start, self.start + self.count):
            novel, most = self.split == "test_novel", 1 if self.settings.crops else MOST
            yield index, draw_scene(random, novel=novel, words=self.settings.words, most=most, grid=self.settings.grid)


def write_images(chunk: Chunk) -> dict[str, list[Json]]:
    """Draws the chunk's pictures and returns the records of every format."""
    random, balance, size = chunk.random, Balance(), chunk.settings.size
    records: dict[str, list[Json]] = {
        name: [] for name in ("images", "captions", "instances", "questions", "annotations", "conversations")
    }
    for index, scene in chunk.scenes(random):
        picture, boxes = draw(scene, size, random), [thing_box(thing, size) for thing in scene.things]
        texts = [f"{article(name(scene.things[0]))}."] if chunk.settings.crops else captions(scene, random)
        if chunk.settings.style == "textured":
            # Drawn all the same, so that scenes and questions are those of the drawn world.
            own = Random(f"textured/{chunk.settings.seed}/{chunk.split}/{index}")
            picture, texts = paint(scene, size, own), texts if chunk.settings.crops else alt_texts(scene, own)
        if chunk.settings.crops:
            picture, boxes = crop(picture, scene.things[0])
        file = f"{index:012d}.png"
        picture.save(chunk.folder / "images" / chunk.split / file, compress_level=4)
        records["images"].append({"id": index, "file_name": file, "width": picture.width, "height": picture.height})
        records["captions"] += caption_records(index, texts)
        records["instances"] += instance_records(index, scene.things, boxes)
        questions = ask(scene, TURNS, balance, random)
        asked, answered = vqa_records(index, questions[:QUESTIONS])
        records["questions"] += asked
        records["annotations"] += answered
        said = turns("<image>", questions, f"{describe(scene, random)}.", random)
        records["conversations"].append({"id": str(index), "image": file, "conversations": said})
    return records


def write_texts(chunk: Chunk) -> dict[str, list[Json]]:
    """The chunk's written scenes as conversations and as plain documents."""
    random, balance = chunk.random, Balance()
    records: dict[str, list[Json]] = {"conversations": [], "questions": [], "corpus": []}
    for index, scene in chunk.scenes(random):
        texts = captions(scene, random)
        questions = ask(scene, TURNS, balance, random)
        said = turns(texts[0], questions, f"{describe(scene, random)}.", random)
        records["conversations"].append({"id": f"text-{index}", "conversations": said})
        question = random.choice(questions)
        said = [{"from": "human", "value": f"{texts[0]}\n{question.text}"}, {"from": "gpt", "value": question.answer}]
        records["questions"].append({"id": f"text-{index}-question", "conversations": said})
        document = "\n".join(random.sample(texts, len(texts)))
        records["corpus"].append({"id": f"text-{index}", "text": document})
    return records


def write_readings(chunk: Chunk) -> dict[str, list[Json]]:
    """The chunk's written scenes as all of their captions, the full description first, and questions of every kind."""
    random, balance = chunk.random, Balance()
    records: list[Json] = []
    for index, scene in chunk.scenes(random):
        texts = captions(scene, random)
        questions = [
            {"kind": question.kind, "question": question.text, "answer": question.answer}
            for question in ask(scene, TURNS, balance, random)
        ]
        records.append({"id": f"reading-{index}", "captions": texts, "questions": questions})
    return {"readings": records}


def _dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, separators=(",", ":"))


def _write_split(
    folder: Path, split: str, images: dict[str, list[Json]], texts: dict[str, list[Json]], settings: Settings
) -> None:
    info: Json = {"description": "the small world", "version": str(FORMAT)}
    if settings.grid != GRID:
        info["grid"] = settings.grid
    categories = [{"id": n + 1, "name": shape, "supercategory": "shape"} for n, shape in enumerate(SHAPES)]
    head = {"info": info, "images": images["images"]}
    _dump(folder / f"coco/captions_{split}.json", {**head, "annotations": images["captions"]})
    instances = {**head, "annotations": images["instances"], "categories": categories}
    _dump(folder / f"coco/instances_{split}.json", instances)
    if settings.crops:
        return
    _dump(folder / f"vqa/questions_{split}.json", {"info": info, "questions": images["questions"]})
    _dump(folder / f"vqa/annotations_{split}.json", {"info": info, "annotations": images["annotations"]})
    _dump(folder / f"llava/conversations_{split}.json", images["conversations"])
    _dump(folder / f"text/conversations_{split}.json", texts["conversations"])
    _dump(folder / f"text/questions_{split}.json", texts["questions"])
    with (folder / f"text/corpus_{split}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(document) + "\n" for document in texts["corpus"])
    with (folder / f"text/readings_{split}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(reading) + "\n" for reading in texts["readings"])


MADE = {"grounding": grounding.FILES, "coco": dense_captions.FILES}
"""Folder -> its files that are made from others."""


def _add_made(folder: Path, settings: Settings) -> None:
    """Writes those files that are made from others and are not there: a world drawn before they existed has none."""
    for split, below in product(SHARES, MADE):
        for start, (make, sources) in MADE[below].items():
            path = folder / f"{below}/{start}_{split}.json"
            if settings.crops or path.exists():
                continue
            read = [json.loads((folder / f"{each}_{split}.json").read_text(encoding="utf-8")) for each in sources]
            partial = path.with_name(f"{path.name}.partial")
            _dump(partial, make(*read, Random(f"{settings.seed}/{settings.format}/{start}/{split}")))
            partial.replace(path)


def _chunks(settings: Settings, kind: str, split: str, folder: Path) -> list[Chunk]:
    total = settings.counts(settings.images if kind == "images" else settings.texts)[split]
    return [
        Chunk(settings=settings, split=split, kind=kind, start=start, count=min(CHUNK, total - start), folder=folder)
        for start in range(0, total, CHUNK)
    ]


WRITERS = {"images": write_images, "texts": write_texts, "readings": write_readings}


def _merge(parts: list[dict[str, list[Json]]]) -> dict[str, list[Json]]:
    return {name: [record for part in parts for record in part[name]] for name in parts[0]}


def write_world(folder: Path, settings: Settings) -> None:
    """Writes the world to `folder`, whole or not at all; a folder that holds the same world is left as it is.

    Raises:
        ValueError: `folder` holds something else, or a setting is out of range.
    """
    if settings.images < 4 or settings.texts < 4:
        smallest = min(settings.images, settings.texts)
        raise ValueError(f"a world has four splits: found {smallest} images or texts, expected at least 4")
    if settings.style not in ("drawn", "textured"):
        raise ValueError(f"--style: found {settings.style!r}, expected drawn or textured")
    if settings.grid < GRID or settings.grid % GRID:
        raise ValueError(f"--grid: found {settings.grid}, expected a multiple of {GRID}, for thirds of a picture")
    if settings.size < 32 or not 0 <= settings.words <= 1:
        raise ValueError(
            f"expected a size of at least 32 pixels and a share of words in 0..1, found {settings.size} and "
            f"{settings.words}"
        )
    if settings.size * GRID < 32 * settings.grid or (settings.crops and settings.size % settings.grid):
        raise ValueError(
            f"--size: found {settings.size}, expected at least {32 * settings.grid // GRID} for places that can be"
            f" seen, and a multiple of {settings.grid} to cut places out of"
        )
    card = folder / "world.json"
    if card.exists() and json.loads(card.read_text()) == settings.card:
        _add_made(folder, settings)
        print(f"{folder} already holds this world")
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else: name an empty folder, or remove it first")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in SHARES:
        (partial / "images" / split).mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        work = {
            (split, kind): [pool.submit(write, chunk) for chunk in _chunks(settings, kind, split, partial)]
            for split in SHARES
            for kind, write in WRITERS.items()
        }
        futures = [future for split_futures in work.values() for future in split_futures]
        for future in track(futures, description="drawing the small world"):
            future.result()
    for split in SHARES:
        images, texts, readings = (_merge([each.result() for each in work[split, kind]]) for kind in WRITERS)
        _write_split(partial, split, images, {**texts, **readings}, settings)
    _add_made(partial, settings)
    _dump(partial / "world.json", settings.card)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


class _Arguments(argparse.ArgumentParser):
    """Complains in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"world: {message}; mllm world --help tells more")


def main(arguments: list[str] | None = None) -> None:
    """`mllm world DIR --images N --seed S`."""
    parser = _Arguments(
        prog="mllm world", allow_abbrev=False, description="Draw a small world of scenes with known truth."
    )
    parser.add_argument("folder", type=Path, help="where to write; must be empty or absent")
    parser.add_argument("--images", type=int, default=20_000, help="pictures in all splits together (20000)")
    parser.add_argument("--texts", type=int, help="scenes that are only written (as many as images)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (0)")
    parser.add_argument("--size", type=int, default=72, help="side of a picture in pixels (72)")
    parser.add_argument("--crops", action="store_true", help="one thing a picture, cut out at its place")
    parser.add_argument("--words", type=float, default=0.0, help="share of pictures with a written word (0)")
    parser.add_argument("--style", default="drawn", help="textured: as if photographed, captions as on the web (drawn)")
    parser.add_argument("--grid", type=int, default=GRID, help="places in a row; 6 with --size 144: half as large (3)")
    given = parser.parse_args(arguments)
    texts = (len(SHARES) if given.crops else given.images) if given.texts is None else given.texts
    settings = Settings(
        images=given.images,
        seed=given.seed,
        texts=texts,
        size=given.size,
        words=given.words,
        crops=given.crops,
        style=given.style,
        grid=given.grid,
    )
    write_world(given.folder, settings)


if __name__ == "__main__":
    main()

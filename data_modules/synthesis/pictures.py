"""Pictures with what is known of them: COCO's captions and instances, any source of captions, or a folder of files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path

import torch
from PIL import Image

from data_modules.sources.coco import images_in, names_of, numbers_of
from data_modules.sources.records import (
    MAX_CAPTION,
    ImageFolder,
    Record,
    RecordError,
    field,
    read_json,
    refused,
    text_of,
)
from data_modules.sources.regions import size_of
from data_modules.sources.source import Source
from data_modules.synthesis.request import Context, NamedBox
from data_modules.synthesis.words import vocabulary
from lightning_mllm.boxes import Malformed, of_pixels, read
from lightning_mllm.contracts import ImageFile, ImageRef

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture that can be asked about."""

    id: str
    image: str
    """Its path as written records name it."""
    file: ImageRef
    context: Context


@dataclass(frozen=True)
class Pictures:
    """Pictures in the order of their file, and what was met on the way."""

    pictures: list[Picture] = default(default_factory=list)
    counts: Counter[str] = default(default_factory=Counter)
    """'pictures'; 'without captions', which are left out; 'without boxes', which kinds that show boxes leave out;
    'boxes'; 'crowd boxes', which are told as such; 'boxes without area', which are left out."""


def coco_pictures(captions: str, instances: str | None, images: str, prefix: str = "") -> Pictures:
    """The images of COCO's captions_*.json with captions, in its order, and all their boxes of instances_*.json.

    Args:
        captions, instances: the files; None for no boxes.
        images: the folder of the images' `file_name`.
        prefix: what records put in front of `file_name` ('coco/train2017/').

    Raises:
        ValueError: names the file, the record and the rule that it breaks.
    """
    found = Pictures()
    folder = ImageFolder(images)
    boxes = dict(_boxes(instances, found.counts)) if instances else {}
    for place, record in images_in(captions, read_json(captions)):
        try:
            told = tuple(text_of(each, "caption", MAX_CAPTION) for each in record["annotations"])
            if not told:
                found.counts["without captions"] += 1
                continue
            width, height = size_of(record)
            name = folder.check(field(record, "file_name", str))
        except RecordError as rule:
            raise refused(captions, place, record, rule) from None
        boxed = boxes.get(record["id"], ())
        context = Context(captions=told, boxes=boxed, width=width, height=height)
        file = ImageFile(folder.path(name))
        found.pictures.append(Picture(id=str(record["id"]), image=prefix + name, file=file, context=context))
        found.counts["without boxes"] += not boxed
    found.counts["pictures"] = len(found.pictures)
    return found


def _boxes(instances: str, counts: Counter[str]) -> Iterator[tuple[int, tuple[NamedBox, ...]]]:
    """Id of each image of a file, and its boxes in the order of the file."""
    content = read_json(instances)
    names = names_of(instances, content)
    for place, record in images_in(instances, content):
        try:
            boxes = [box for each in record["annotations"] if (box := _box(each, names, size_of(record), counts))]
        except RecordError as rule:
            raise refused(instances, place, record, rule) from None
        yield record["id"], tuple(boxes)


def _box(annotation: Record, names: dict[int, str], size: tuple[int, int], counts: Counter[str]) -> NamedBox | None:
    """The box of an annotation; None where it has no area in the image, as a few of COCO's."""
    category = field(annotation, "category_id", int)
    if category not in names:
        rule = f"category_id is {category}, expected one of the {len(names)} categories"
        raise RecordError(f"annotation {annotation['id']}: {rule}")
    left, top, width, height = numbers_of(annotation, "bbox", 4)
    try:
        box = of_pixels(left, top, width, height, *size)
    except ValueError:
        counts["boxes without area"] += 1
        return None
    crowd = bool(annotation.get("iscrowd", 0))
    counts["crowd boxes" if crowd else "boxes"] += 1
    return NamedBox(names[category], box, crowd=crowd)


def source_pictures(source: Source, prefix: str = "") -> Pictures:
    """The pictures of a source whose samples are one picture and texts about it, with all texts of the same file.

    Where a source writes boxes behind phrases ("a dog [[010,020,300,400]] on a sofa"), they become boxes named by the
    last noun of the phrase, and the captions are without them.

    Raises:
        ValueError: a sample has no or several pictures or no text, or boxes are told of a padded square.
    """
    dialect, frame = getattr(source, "dialect", None), source.frame or "image"
    if frame != "image":
        raise ValueError(f"frame: found '{frame}', expected 'image', of which boxes are shares here")
    source.load()
    root = getattr(source, "images", "")
    told: dict[str, tuple[ImageRef, dict[str, None], dict[NamedBox, None]]] = {}
    for index in range(len(source)):
        sample = source.sample(index, torch.Generator().manual_seed(0))
        if len(sample.images) != 1 or not sample.references:
            raise ValueError(
                f"{source.where(index)}: found {len(sample.images)} images and {len(sample.references)} texts, "
                "expected one image and at least one text about it"
            )
        _, captions, boxes = told.setdefault(sample.images[0].name, (sample.images[0], {}, {}))
        for text in (sample.turns[-1].text, *sample.references) if dialect else sample.references:
            captions[_without_boxes(text) if dialect else text] = None
            boxes.update(dict.fromkeys(_named_boxes(text, dialect) if dialect else ()))
    return _collected(told, root, prefix)


def _collected(
    told: dict[str, tuple[ImageRef, dict[str, None], dict[NamedBox, None]]], root: str, prefix: str
) -> Pictures:
    found = Pictures()
    for name, (file, captions, boxes) in told.items():
        path = Path(name)
        relative = str(path.relative_to(root)) if root and path.is_relative_to(root) else path.name
        width, height = getattr(file, "size", None) or _size(path)
        context = Context(captions=tuple(captions), boxes=tuple(boxes), width=width, height=height)
        id = relative.rpartition(".")[0] or relative
        found.pictures.append(Picture(id=id, image=prefix + relative, file=file, context=context))
        found.counts.update({"boxes": len(boxes), "without boxes": not boxes})
    found.counts["pictures"] = len(found.pictures)
    return found


def folder_pictures(images: str, prefix: str = "") -> Pictures:
    """The image files of a folder and of those in it, by name, of which nothing else is known.

    Raises:
        ValueError: it has none, or one cannot be opened.
    """
    paths = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{images}: found no image, expected files with {', '.join(SUFFIXES)}")
    return _collected({str(path): (ImageFile(path), {}, {}) for path in paths}, images, prefix)


def _size(path: Path) -> tuple[int, int]:
    """Width and height by the head of a file."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise ValueError(f"{path}: cannot read the image ({error})") from None


def _without_boxes(text: str) -> str:
    return " ".join(re.sub(r"\s*\[+[^\[\]]*\]+", "", text).split())


def _named_boxes(text: str, dialect: str) -> Iterator[NamedBox]:
    """The boxes of a text with the nouns before them."""
    before = 0
    for match in re.finditer(r"\[+[^\[\]]*\]+", text):
        boxes = read(match[0], dialect)
        if not isinstance(boxes, Malformed):
            phrase = text[before : match.start()].strip()
            yield from (NamedBox(_noun(phrase), box) for box in boxes)
        before = match.end()


def _noun(phrase: str) -> str:
    """The category of the thing that a phrase ends with, or its last word."""
    for names in (frozenset({"person"}), frozenset({"circle"})):
        ends = [each for each in vocabulary(names).mentions(phrase) if each.end == len(phrase)]
        if ends:
            return min(ends[0].categories) if len(ends[0].categories) == 1 else ends[0].word
    return phrase.split()[-1].lower() if phrase.split() else "thing"

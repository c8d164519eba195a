"""Images with captions written by people: COCO's own annotations and the lists of the Karpathy split."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import ClassVar, Literal

import torch

from data_modules.sources.files import BadRecords, Entry, FileSource
from data_modules.sources.records import (
    MAX_CAPTION,
    RecordError,
    field,
    list_in,
    read_json,
    refused,
    text_of,
)
from data_modules.sources.source import Published, key_of_images
from data_modules.sources.templates import Prompts
from lightning_mllm.contracts import Sample, Turn


class CaptionSource(FileSource):
    """Images with captions; entries are images: [id, file name, [caption ids], [captions], what fills the prompt].

    Args:
        annotations: the file.
        images: the folder that image names are relative to.
        prompt: the user turn: a family of templates ('caption'), one of them ('caption/photo_of'), or a text with
            `<image>`.
        per: one sample a caption; or one an image, whose caption is drawn anew in every data epoch. Either way all
            captions of the image are the references.
        knows: the fields that the prompt may have.
        bad_records: 'refuse' or 'skip', as in FileSource.
    """

    captions: ClassVar[bool] = True

    def __init__(
        self,
        annotations: str,
        images: str,
        prompt: str,
        per: Literal["caption", "image"],
        knows: tuple[str, ...] = (),
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, bad_records)
        if per not in ("caption", "image"):
            raise ValueError(f"per: found {per!r}, expected 'caption' or 'image'")
        self.prompts, self.per = Prompts(prompt, knows=knows), per
        self._ends = array("q")

    def load(self) -> None:
        if self._entries is None:
            super().load()
            counts = (len(self._entry(index)[2]) for index in range(super().__len__()))
            self._ends = array("q", accumulate(counts))

    def _image_entry(
        self,
        id: str,
        name: str,
        caption_ids: list[str],
        texts: list[str],
        values: dict[str, str] | None = None,
        place: str = "",
    ) -> Entry:
        words = round(sum(len(text.split()) for text in texts) / len(texts)) + self.prompts.words
        words += sum(len(text.split()) for text in (values or {}).values())
        return Entry(words, True, [id, name, caption_ids, texts, values or {}], place)

    def _locate(self, index: int) -> tuple[int, int]:
        """Of sample `index` the entry, and which of its captions."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        entry = bisect_right(self._ends, index)
        return entry, index - (self._ends[entry - 1] if entry else 0)

    def __len__(self) -> int:
        count = super().__len__()
        return self._ends[-1] if self.per == "caption" else count

    def length(self, index: int) -> int:
        return super().length(self._locate(index)[0] if self.per == "caption" else index)

    def has_image(self, index: int) -> bool:
        return True

    def image_key(self, index: int) -> int | None:
        entry = self._locate(index)[0] if self.per == "caption" else index
        return key_of_images(self.images, [self._entry(entry)[1]])

    def where(self, index: int) -> str:
        return super().where(self._locate(index)[0] if self.per == "caption" else index)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        which = 0
        if self.per == "caption":
            index, which = self._locate(index)
        id, name, caption_ids, texts, values = self._entry(index)
        if self.per == "image":
            which = int(torch.randint(len(texts), (), generator=generator))
        return Sample(
            id=caption_ids[which] if self.per == "caption" else id,
            turns=(
                Turn(role="user", text=self.prompts.draw(generator, values)),
                Turn(role="assistant", text=texts[which]),
            ),
            images=self._images(name),
            references=tuple(texts),
            task="caption",
        )


class CocoCaptions(CaptionSource):
    """COCO's captions_*.json: {images: [{id, file_name}], annotations: [{id, image_id, caption}]}.

    Args:
        annotations: the captions file.
        images: the folder of the images' `file_name`.
        prompt: the user turn: a family of templates ('caption'), one of them ('caption/photo_of'), or a text with
            `<image>`.
        per: one sample a caption; or one an image, whose caption is drawn anew in every data epoch. Either way all
            captions of the image are the references.
        bad_records: 'refuse' or 'skip', as in FileSource.
    """

    def __init__(
        self,
        annotations: str,
        images: str,
        prompt: str = "<image>",
        per: Literal["caption", "image"] = "caption",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, per, bad_records=bad_records)

    def _read(self) -> Iterator[Entry]:
        names: dict[int, str] = {}
        places: dict[int, str] = {}
        ids: dict[int, list[str]] = {}
        texts: dict[int, list[str]] = {}
        seen: set[int] = set()
        content = read_json(self.annotations)
        for index, record in enumerate(list_in(self.annotations, content, "images")):
            try:
                image = field(record, "id", int)
                if image in names:
                    raise RecordError("the id occurs twice, expected different ones")
                names[image], places[image] = field(record, "file_name", str), f"images[{index}]"
            except RecordError as rule:
                self._bad(refused(self.annotations, f"images[{index}]", record, rule))
        for index, record in enumerate(list_in(self.annotations, content, "annotations")):
            try:
                caption, image = field(record, "id", int), field(record, "image_id", int)
                if caption in seen:
                    raise RecordError("the id occurs twice, expected different ones")
                if image not in names:
                    raise RecordError(f"image_id {image} is not in 'images', expected one of its {len(names)} ids")
                text = text_of(record, "caption", MAX_CAPTION)
                if image not in texts:
                    self._folder.check(names[image])
            except RecordError as rule:
                self._bad(refused(self.annotations, f"annotations[{index}]", record, rule))
                continue
            seen.add(caption)
            ids.setdefault(image, []).append(str(caption))
            texts.setdefault(image, []).append(text)
        for image in texts:
            yield self._image_entry(str(image), names[image], ids[image], texts[image], place=places[image])


class KarpathyCaptions(CaptionSource):
    """The Karpathy split, in either of its two forms.

    The original dataset_coco.json is {images: [{filepath, filename, split, cocoid, sentences: [{raw}]}]}; the lists
    made from it are [{image, caption}], `caption` being a text (train) or a list of texts (val, test).

    Args:
        annotations: the file.
        images: the folder that holds train2014/ and val2014/.
        split: which part of the original file: train, restval, val, test, or several joined by '+' (training sets are
            usually train+restval); must be empty for a list.
        prompt: the user turn: a family of templates ('caption'), one of them ('caption/photo_of'), or a text with
            `<image>`.
        per, bad_records: as in CocoCaptions.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="COCO Caption",
            paper="1504.00325",
            family="caption",
            tasks=("caption", "retrieval"),
            held_in=True,
            files=("dataset_coco.json",),
        ),
    )

    def __init__(
        self,
        annotations: str,
        images: str,
        split: str = "",
        prompt: str = "<image>",
        per: Literal["caption", "image"] = "caption",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, per, bad_records=bad_records)
        self.split = split

    def _read(self) -> Iterator[Entry]:
        content = read_json(self.annotations)
        if isinstance(content, list):
            records, place, key, parse = content, "record {}", "image", self._listed
            if self.split:
                raise ValueError(f"{self.annotations}: split is '{self.split}', expected none for a list of captions")
        else:
            records = list_in(self.annotations, content, "images")
            place, key, parse = "images[{}]", "cocoid", self._original
            self._check_split(records)
        captions: dict[str, list[str]] = {}
        places: dict[str, str] = {}
        for index, record in enumerate(records):
            try:
                if (found := parse(record)) is None:
                    continue
                name, texts = found
                if name not in captions:
                    self._folder.check(name)
                captions.setdefault(name, []).extend(texts)
                places.setdefault(name, place.format(index))
            except RecordError as rule:
                self._bad(refused(self.annotations, place.format(index), record, rule, key))
        for name, texts in captions.items():
            yield self._image_entry(name, name, [f"{name}#{k}" for k in range(len(texts))], texts, place=places[name])

    def _check_split(self, records: list[object]) -> None:
        known = {record.get("split") for record in records if isinstance(record, dict)} - {None}
        if odd := [part for part in self.split.split("+") if part not in known]:
            raise ValueError(
                f"{self.annotations}: split is '{odd[0]}', expected {' or '.join(sorted(map(str, known)))}"
            )

    def _original(self, record: object) -> tuple[str, list[str]] | None:
        if field(record, "split", str) not in self.split.split("+"):
            return None
        sentences = field(record, "sentences", list)
        if not sentences:
            raise RecordError("'sentences' is empty, expected at least one")
        folder = field(record, "filepath", str, type(None)) or "."
        return f"{folder}/{field(record, 'filename', str)}", [text_of(each, "raw", MAX_CAPTION) for each in sentences]

    def _listed(self, record: object) -> tuple[str, list[str]]:
        caption = field(record, "caption", str, list)
        if not caption:
            raise RecordError("'caption' is empty, expected at least one text")
        each = caption if isinstance(caption, list) else [caption]
        return field(record, "image", str), [text_of({"caption": text}, "caption", MAX_CAPTION) for text in each]

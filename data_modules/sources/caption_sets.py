"""Captions that come with something else: those of web images with synthetic ones, and those of images with text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from data_modules.sources.captions import CaptionSource
from data_modules.sources.files import BadRecords, Entry
from data_modules.sources.ocr import read_ocr
from data_modules.sources.questions import OCR_TOKENS
from data_modules.sources.records import (
    MAX_CAPTION,
    RecordError,
    field,
    records_in,
    refused,
    text_of,
)
from data_modules.sources.source import Published
from data_modules.sources.web_captions import WebCaptions
from lightning_mllm.contracts import IMAGE_MARK

TOP = 2
"""Of the original and the synthetic captions, ranked by CLIP, so many are kept (BLIP-2, arXiv 2301.12597, sec. 3.4)."""


class WebCapFilt(WebCaptions):
    """Web images with their CapFilt captions (BLIP, arXiv 2201.12086): records {image, caption}, `caption` being the
    list of the original and the synthetic texts, the best one first.

    One sample an image: one of the first two captions, drawn anew in every data epoch.

    Args:
        annotations, images, prompt, bad_records: as in WebCaptions.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="Web CapFilt",
            paper="2201.12086",
            family="caption",
            tasks=("caption",),
            held_in=True,
            files=("ccs_synthetic_filtered_large.json",),
        ),
    )

    def __init__(
        self,
        annotations: str | list[str],
        images: str = "",
        prompt: str = "caption",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, top=TOP, bad_records=bad_records)


class TextCaps(CaptionSource):
    """TextCaps' {data: [{image_id, image_path, caption_id, caption_str}]}, one record a caption, and OCR tokens.

    Args:
        annotations: TextCaps_0.1_SPLIT.json.
        images: the folder that `image_path` ('train/x.jpg') is relative to.
        ocr: TextVQA_Rosetta_OCR_v0.2_SPLIT.json, whose first 30 tokens of an image are told; empty for none.
        prompt: as in CaptionSource, with `{ocr}`.
        per, bad_records: as in CaptionSource.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="TextCaps",
            paper="2003.12462",
            family="ocr_caption",
            tasks=("caption",),
            held_in=True,
            files=("TextCaps_0.1_train.json", "TextVQA_Rosetta_OCR_v0.2_train.json"),
        ),
    )

    def __init__(
        self,
        annotations: str,
        images: str,
        ocr: str = "",
        prompt: str = "ocr_caption",
        per: Literal["caption", "image"] = "caption",
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, prompt, per, ("ocr",), bad_records)
        self.ocr = str(ocr)

    def _read(self) -> Iterator[Entry]:
        names: dict[str, str] = {}
        places: dict[str, str] = {}
        ids: dict[str, list[str]] = {}
        texts: dict[str, list[str]] = {}
        seen: set[int] = set()
        for place, record in records_in(self.annotations, "data"):
            try:
                image, caption = field(record, "image_id", str), field(record, "caption_id", int)
                if caption in seen:
                    raise RecordError("the id occurs twice, expected different ones")
                text = text_of(record, "caption_str", MAX_CAPTION)
                name = self._folder.check(field(record, "image_path", str))
                if names.setdefault(image, name) != name:
                    raise RecordError(f"image {image} is '{name}', expected '{names[image]}' as before")
            except RecordError as rule:
                self._bad(refused(self.annotations, place, record, rule, "caption_id"))
                continue
            seen.add(caption)
            places.setdefault(image, place)
            ids.setdefault(image, []).append(str(caption))
            texts.setdefault(image, []).append(text)
        tokens = read_ocr(self.ocr)
        for image, name in names.items():
            told = ", ".join(tokens.get(image, [])[:OCR_TOKENS]).replace(IMAGE_MARK, "")
            yield self._image_entry(image, name, ids[image], texts[image], {"ocr": told}, places[image])

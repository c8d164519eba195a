"""Captions of images from the web, of any number: LAION, COYO, CC3M and others, in tars, tables and lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from data_modules.sources.record_source import Checked, RecordSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, text_of, texts_of
from data_modules.sources.source import BadRecords
from data_modules.sources.templates import Prompts
from lightning_mllm.contracts import ImageRef, Sample, Turn

SUCCESS = "success"
"""What img2dataset calls an image that it could download."""


class WebCaptions(RecordSource):
    """Records {image, caption}, `caption` being a text, or a list of texts with the best one first.

    They may be lines, a list, parquet with the pictures in it, or the tars that img2dataset writes of LAION, COYO, CC3M
    and others: `000031234.jpg`, `000031234.json` with the caption, or `000031234.txt` alone (see `containers.tar`).

    One sample an image: one of the first `top` captions, drawn anew in every data epoch.

    Args:
        annotations: a file, a pattern (`data/laion/{00000..41407}.tar`) or a list of them, as `open_records` takes it.
        images: the folder that image names are relative to; empty where pictures are stored with the records.
        prompt: as in CaptionSource.
        caption: the name of the caption in a record; the text of a .txt member is taken where there is none.
        top: how many captions are drawn from.
        bad_records: as in RecordSource; images that are gone from the web need 'skip'.
    """

    captions: ClassVar[bool] = True
    key: ClassVar[str] = "image"

    def __init__(
        self,
        annotations: str | list[str],
        images: str = "",
        prompt: str = "caption",
        caption: str = "caption",
        top: int = 1,
        bad_records: BadRecords = "refuse",
    ) -> None:
        super().__init__(annotations, images, bad_records)
        if top < 1:
            raise ValueError(f"top: found {top}, expected at least 1")
        self.prompts, self.caption, self.top = Prompts(prompt), caption, top

    def _texts(self, record: object) -> list[str]:
        """The captions to draw from."""
        name = self.caption
        if isinstance(record, dict) and name not in record and "txt" in record:
            name = "txt"
        if isinstance(field(record, name, str, list), str):
            return [text_of(record, name, MAX_CAPTION)]
        return texts_of(record, name, MAX_CAPTION)[: self.top]

    def _check(self, record: object, place: str, stored: Mapping[str, ImageRef]) -> Checked:
        name = field(record, "image", str)
        assert isinstance(record, dict), "others have no field"
        if (status := record.get("status", SUCCESS)) != SUCCESS:
            raise RecordError(f"'status' is {status!r}, expected {SUCCESS!r}")
        if name not in stored:
            self._folder.check(name)
        texts = self._texts(record)
        return Checked(round(sum(len(text.split()) for text in texts) / len(texts)) + self.prompts.words, True)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        record, stored = self._read(index)
        texts = self._texts(record)
        which = int(torch.randint(len(texts), (), generator=generator))
        return Sample(
            id=str(record.get("key", record["image"])),
            turns=(
                Turn(role="user", text=self.prompts.draw(generator)),
                Turn(role="assistant", text=texts[which]),
            ),
            images=(self._image(record["image"], stored),),
            references=tuple(texts),
            task="caption",
        )

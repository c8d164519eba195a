"""Captions that InstructBLIP (arXiv 2305.06500) tests on alone: NoCaps and Flickr30K."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from data_modules.sources.captions import CocoCaptions, KarpathyCaptions
from data_modules.sources.files import Entry
from data_modules.sources.records import RecordError, field, list_in, one_of, read_json, refused
from data_modules.sources.source import Published

DOMAINS = ("in-domain", "near-domain", "out-domain")
"""Whether the objects of an image are among COCO's classes: all of them, some, or none."""


class NoCaps(CocoCaptions):
    """nocaps_val_4500_captions.json: COCO's captions file, its images having a `domain`; ten captions an image.

    Args:
        annotations: the file.
        images: the folder of the images' `file_name`.
        domain: 'in-domain', 'near-domain' or 'out-domain'; empty for all three.
        prompt, per: as in CocoCaptions.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="NoCaps",
            paper="1812.08658",
            family="caption",
            tasks=("caption",),
            held_in=False,
            files=("nocaps_val_4500_captions.json",),
        ),
    )

    def __init__(
        self,
        annotations: str,
        images: str,
        domain: str = "",
        prompt: str = "caption/short_description",
        per: Literal["caption", "image"] = "image",
    ) -> None:
        super().__init__(annotations, images, prompt, per)
        if domain and domain not in DOMAINS:
            raise ValueError(f"domain: found '{domain}', expected {' or '.join(DOMAINS)}")
        self.domain = domain

    def _read(self) -> Iterator[Entry]:
        domains: dict[str, str] = {}
        for index, record in enumerate(list_in(self.annotations, read_json(self.annotations), "images")):
            try:
                domains[str(field(record, "id", int))] = one_of(record, "domain", DOMAINS)
            except RecordError as rule:
                raise refused(self.annotations, f"images[{index}]", record, rule) from None
        yield from (entry for entry in super()._read() if self.domain in ("", domains[entry.value[0]]))


class Flickr30k(KarpathyCaptions):
    """Flickr30K (Young et al., TACL 2014) in the Karpathy split: five captions an image, as captions or for retrieval.

    dataset_flickr30k.json is as dataset_coco.json, but for images without `filepath` and `cocoid`; flickr30k_test.json
    is a list [{image: "flickr30k-images/1.jpg", caption: [five texts]}].

    Args:
        annotations: either file.
        images: the folder that the file's names are relative to: of dataset_flickr30k.json the folder of the images
            themselves, of a list the one that holds flickr30k-images/.
        split: train, val or test of dataset_flickr30k.json; must be empty for a list.
        prompt, per: as in KarpathyCaptions; retrieval needs one sample an image.
    """

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            title="Flickr30K",
            paper="TACL 2014",
            family="caption",
            tasks=("caption", "retrieval"),
            held_in=False,
            files=("dataset_flickr30k.json", "flickr30k_test.json"),
        ),
    )

    def __init__(
        self,
        annotations: str,
        images: str,
        split: Literal["", "train", "val", "test"] = "",
        prompt: str = "caption/short_description",
        per: Literal["caption", "image"] = "image",
    ) -> None:
        super().__init__(annotations, images, split, prompt, per)

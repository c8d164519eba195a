"""What a synthesis is made from: pictures with captions and boxes, kinds of requests, and a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_modules import sources
from data_modules.sources.source import Source
from data_modules.synthesis.kinds import FILES, Kind, plan, read_kind
from data_modules.synthesis.pictures import Pictures, coco_pictures, folder_pictures, source_pictures
from data_modules.synthesis.request import Request
from lightning_mllm.contracts import ImageRef


@dataclass(frozen=True, kw_only=True)
class Settings:
    """As on the command line; the journal keeps them, so that a folder alone says what its requests are.

    Args:
        captions: Format ('coco', or a class of `data_modules.sources`) and file; None for pictures alone.
        instances: COCO's file of boxes; None for none.
        images: The folder of the pictures.
        prefix: What records put in front of a picture's name.
        kinds: 'NAME' or 'NAME=COUNT'; NAME is a kind of the package, or the path of a .yaml file.
        limit: At most so many pictures, the first of the file; None for all.
        seed: Of what is drawn.
    """

    captions: tuple[str, str] | None
    instances: str | None
    images: str
    prefix: str
    kinds: tuple[str, ...]
    limit: int | None
    seed: int

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Settings:
        """From what `text` gave."""
        given = json.loads(text)
        captions = None if given["captions"] is None else tuple(given["captions"])
        return cls(**{**given, "captions": captions, "kinds": tuple(given["kinds"])})

    @property
    def files(self) -> dict[str, str]:
        """Role -> path of each file that is read."""
        captions = {"captions": self.captions[1]} if self.captions else {}
        return {**captions, **({"instances": self.instances} if self.instances else {})}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Everything that is to be asked, and what it was made from."""

    kinds: Sequence[Kind]
    requests: Sequence[Request]
    images: Mapping[str, ImageRef]
    """Path of a picture as records name it -> its file."""
    counts: Mapping[str, int]
    """Of pictures, boxes and what was left out."""
    plan: Mapping[str, str]
    """Digests of the files, and the seed, by name: what may not change while a journal grows."""


def load(settings: Settings) -> Planned:
    """Reads the files and draws the requests.

    Raises:
        ValueError: A file cannot be read, is of another form, or there are fewer pictures than are wanted.
    """
    counts: dict[str, int | None] = {}
    kinds: list[Kind] = []
    for text in settings.kinds:
        name, count = _split(text)
        kind = read_kind(name)
        if count is not None and not count.isdecimal():
            raise ValueError(f"--kinds: found '{text}', expected NAME or NAME=COUNT, as in detail=1000")
        if kind.name in counts:
            raise ValueError(f"--kinds: found '{kind.name}' twice, expected each kind once")
        counts[kind.name] = None if count is None else int(count)
        kinds.append(kind)
    found = _pictures(settings)
    pictures = found.pictures if settings.limit is None else found.pictures[: settings.limit]
    requests, left_out = plan(pictures, kinds, counts, settings.seed)
    if not requests:
        why = ", ".join(f"{count} {what}" for what, count in left_out.items()) or "no picture"
        raise ValueError(f"{settings.images}: found nothing to ask about ({why}), expected pictures for a kind")
    for request in requests:
        told = "".join(message.text for message in request.messages)
        if told.encode(errors="replace") != told.encode(errors="surrogatepass"):
            raise ValueError(
                f"{request.id}: found half a character in what is known of {request.image}, expected Unicode"
            )
    return Planned(
        kinds=kinds,
        requests=requests,
        images={picture.image: picture.file for picture in pictures},
        counts={**found.counts, **({"pictures taken": len(pictures)} if settings.limit else {}), **left_out},
        plan={**{role: _digest(path) for role, path in settings.files.items()}, "seed": str(settings.seed)},
    )


def absolute(kind: str) -> str:
    """'NAME' or 'NAME=COUNT' with the path of a file from the root on, so that it is found from any folder."""
    name, count = _split(kind)
    named = str(Path(name).resolve()) if name.endswith(FILES) else name
    return named if count is None else f"{named}={count}"


def _split(kind: str) -> tuple[str, str | None]:
    """Name and count of 'NAME=COUNT'; a folder of a path may have '=' in its name."""
    name, equals, count = kind.rpartition("=")
    return (name, count) if equals and not kind.endswith(FILES) else (kind, None)


def _pictures(settings: Settings) -> Pictures:
    if settings.captions is None:
        return folder_pictures(settings.images, settings.prefix)
    format, file = settings.captions
    if format == "coco":
        return coco_pictures(file, settings.instances, settings.images, settings.prefix)
    kind = getattr(sources, format, None)
    if not (isinstance(kind, type) and issubclass(kind, Source)):
        raise ValueError(f"--captions: found '{format}', expected coco or a class that mllm data list names")
    try:
        source = kind(annotations=file, images=settings.images)  # pyright: ignore[reportCallIssue]
    except TypeError as error:
        raise ValueError(f"--captions: {format} is not read from one file and a folder of images ({error})") from error
    return source_pictures(source, settings.prefix)


def _digest(path: str) -> str:
    """SHA-256 of a file, and its name."""
    with Path(path).open("rb") as file:
        return f"{Path(path).name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"

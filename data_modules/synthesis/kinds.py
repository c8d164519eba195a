"""Kinds of requests, each a file of `prompts/`, and the plan: which pictures are asked about in which way."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

import yaml

from data_modules.synthesis.context import CROWD, write_context
from data_modules.synthesis.pictures import Picture
from data_modules.synthesis.request import Context, Message, NamedBox, Request

Form = Literal["turns", "turn", "text"]
"""What an answer is: several questions with answers, one, or a text whose question is drawn from a list."""
PROMPTS = Path(__file__).with_name("prompts")
FILES = (".yaml", ".yml")
"""Ends of the names of files that are kinds of one's own."""
KINDS: tuple[str, ...] = tuple(sorted(path.stem for path in PROMPTS.glob("*.yaml")))
"""The kinds that come with the package."""


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """A picture in words with the answer that is wanted."""

    context: Context
    answer: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is asked about a picture, and the form of the answer."""

    name: str
    published: int
    """How many the publication made that the kind is taken from."""
    form: Form
    boxes: bool
    """Whether boxes are shown beside the captions."""
    picture: bool = False
    """Whether the picture itself is shown, in place of captions and boxes."""
    system: str
    examples: tuple[Exemplar, ...] = ()
    questions: tuple[str, ...] = ()
    """Of a text: one of them becomes the user's turn."""
    prompts: Mapping[str, str]
    """Where the picture is shown: pattern of its path -> what the user says; the first that matches."""
    max_tokens: int
    temperature: float
    turns: tuple[int, int] = (1, 1)
    """Fewest and most questions of an answer."""
    words: tuple[int, int]
    """Fewest and most words of one answer."""

    def lacks(self, picture: Picture) -> str:
        """What a picture would need for this kind; empty where it has all."""
        if self.picture:
            return ""
        if not picture.context.captions:
            return "captions"
        return "boxes" if self.boxes and not picture.context.boxes else ""

    def request(self, picture: Picture, seed: int) -> Request:
        """The request about a picture: a function of the arguments alone."""
        random = Random(_digest(seed, picture.id, self.name))
        return Request(
            id=f"{picture.id}/{self.name}",
            kind=self.name,
            image=picture.image,
            messages=(*self._head, self._asked(picture)),
            context=picture.context,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            question=random.choice(self.questions) if self.questions else "",
        )

    @cached_property
    def _head(self) -> tuple[Message, ...]:
        """The system message and the examples: one copy for the requests of all pictures."""
        head = [Message("system", self.system)]
        for example in self.examples:
            head.append(Message("user", write_context(example.context, boxes=self.boxes)))
            head.append(Message("assistant", example.answer))
        return tuple(head)

    def _asked(self, picture: Picture) -> Message:
        if not self.picture:
            return Message("user", write_context(picture.context, boxes=self.boxes))
        prompt = next(text for pattern, text in self.prompts.items() if fnmatch(picture.image.lower(), pattern))
        return Message("user", prompt, (picture.file,))


def read_kind(name: str) -> Kind:
    """A kind of the package by its name, or one's own by the path of a .yaml file in the form of `prompts/`.

    Raises:
        ValueError: there is no such kind or file, or the file has another form.
    """
    path = Path(name) if name.endswith(FILES) else PROMPTS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"kind: found '{name}', expected {', '.join(KINDS)} or the path of a .yaml file")
    try:
        return _kind(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        told = f"no '{error.args[0]}'" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path}: found {told}, expected the keys of the package's prompts") from None


def plan(
    pictures: Sequence[Picture], kinds: Iterable[Kind], counts: Mapping[str, int | None], seed: int = 0
) -> tuple[list[Request], Counter[str]]:
    """The requests about pictures, kind after kind, and how many were left out for what they lack.

    Which pictures are drawn depends on the seed, their ids and the kind, not on the other kinds or on their order.

    Args:
        counts: kind -> how many; every picture that has what the kind needs where a kind is missing, or None.

    Raises:
        ValueError: more are wanted than there are pictures for, or a count is about no kind.
    """
    requests: list[Request] = []
    left_out: Counter[str] = Counter()
    kinds = list(kinds)
    if odd := set(counts) - {kind.name for kind in kinds}:
        raise ValueError(f"counts: found '{min(odd)}', expected {', '.join(kind.name for kind in kinds)}")
    for kind in kinds:
        usable = [picture for picture in pictures if not kind.lacks(picture)]
        left_out.update(f"{kind.name}: no {kind.lacks(picture)}" for picture in pictures if kind.lacks(picture))
        count = counts.get(kind.name)
        if count is not None and count > len(usable):
            raise ValueError(f"{kind.name}: {count} are wanted, expected at most the {len(usable)} pictures for it")
        if count is not None:
            drawn = sorted(usable, key=lambda picture: _digest(seed, picture.id, kind.name))[:count]
            kept = {picture.id for picture in drawn}
            usable = [picture for picture in usable if picture.id in kept]
        requests += [kind.request(picture, seed) for picture in usable]
    return requests, left_out


def _digest(seed: int, picture: str, kind: str) -> bytes:
    return hashlib.sha256(f"{seed}/{picture}/{kind}".encode()).digest()


def _kind(content: Mapping[str, Any]) -> Kind:
    given = dict(content)
    form = given["form"]
    if form not in get_args(Form):
        raise ValueError(f"form '{form}'")
    if (form == "text") != bool(given.get("questions")):
        raise ValueError("questions, which a text needs and nothing else has")
    if given.get("picture") and "*" not in given["prompts"]:
        raise ValueError("no prompt '*'")
    return Kind(
        name=given.pop("kind"),
        examples=tuple(_exemplar(each) for each in given.pop("examples", ())),
        questions=tuple(given.pop("questions", ())),
        prompts=given.pop("prompts", {}),
        turns=_range(given.pop("turns", (1, 1))),
        words=_range(given.pop("words")),
        **given,
    )


def _range(given: Sequence[int]) -> tuple[int, int]:
    least, most = given
    return least, most


def _exemplar(given: Mapping[str, Any]) -> Exemplar:
    boxes = tuple(
        NamedBox(each["name"].removesuffix(CROWD), tuple(each["box"]), crowd=each["name"].endswith(CROWD))
        for each in given.get("boxes", ())
    )
    context = Context(captions=tuple(given["captions"]), boxes=boxes, width=640, height=480)
    return Exemplar(context=context, answer=given["answer"].strip())

"""How a task is put into words: the template bank, which is data (data_modules/templates), and drawing from it.

A file of the bank is one family, the ways to put one kind of task. `vqa` names the whole family, `vqa/short_answer` one
template of it. In a text, `{question}` is filled in, and `[OCR tokens: {ocr}. ]` is left out where its field is empty.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
import yaml

from lightning_mllm.contracts import IMAGE_MARK

FOLDER = files("data_modules") / "templates"

FIELDS = (
    *("question", "answer", "options", "choices", "ocr", "history", "statement", "context"),
    *("expression", "plural", "box", "subject", "subject_box", "object", "object_box"),
)
"""What a template may ask for; `choices` are options, each a line 'A. text'; an expression, a subject and an object are
something in the image in words, and boxes are spelled as in one of the dialects of lightning_mllm/boxes.py."""

_FIELD = re.compile(r"\{(\w+)\}")
_OPTIONAL = re.compile(r"\[([^\[\]]*\{\w+\}[^\[\]]*)\]")


@dataclass(frozen=True, kw_only=True)
class Template:
    """One way to put a task."""

    name: str
    """Family and name: 'vqa/short_answer'; empty for a text of the user's own."""
    text: str
    provenance: str
    """Whose wording it is: 'paper', 'released' (its code), 'ours after the paper' where only the form is
    known to us, or 'ours'."""

    @property
    def fields(self) -> set[str]:
        return set(_FIELD.findall(self.text))

    @property
    def needed(self) -> set[str]:
        """The fields that may not be empty."""
        return set(_FIELD.findall(_OPTIONAL.sub("", self.text)))

    def write(self, values: Mapping[str, str]) -> str:
        """The text with its fields filled in; what the values hold is never taken for a field."""

        def part(found: re.Match[str]) -> str:
            inner = found.group(1)
            return inner if all(values.get(name) for name in _FIELD.findall(inner)) else ""

        return _FIELD.sub(lambda found: values.get(found.group(1), ""), _OPTIONAL.sub(part, self.text))


@cache
def bank() -> dict[str, tuple[Template, ...]]:
    """Family -> its templates."""
    families: dict[str, tuple[Template, ...]] = {}
    for file in sorted(FOLDER.iterdir(), key=lambda each: each.name):
        if not file.name.endswith(".yaml"):
            continue
        family = file.name.removesuffix(".yaml")
        content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        families[family] = tuple(
            Template(name=f"{family}/{name}", **each) for name, each in content["templates"].items()
        )
    return families


def templates(given: str) -> tuple[Template, ...]:
    """The templates that a family's name, a template's name, or a text with `<image>` or a field stands for.

    Raises:
        ValueError: it is none of them, or has a field that does not exist.
    """
    if IMAGE_MARK in given or "{" in given:
        own = Template(name="", text=given, provenance="given")
        if odd := sorted(own.fields - set(FIELDS)):
            raise ValueError(f"prompt: found {{{odd[0]}}} in {given!r}, expected {_listed(FIELDS)}")
        if (marks := given.count(IMAGE_MARK)) > 1:
            raise ValueError(f"prompt: found {marks} {IMAGE_MARK} marks in {given!r}, expected at most 1")
        return (own,)
    if given in bank():
        return bank()[given]
    each = {template.name: template for family in bank().values() for template in family}
    if given in each:
        return (each[given],)
    near = difflib.get_close_matches(given, [*bank(), *each], n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise ValueError(
        f"prompt: found {given!r}, expected a family ({', '.join(bank())}), one of its templates (vqa/short_answer),"
        f" or a text with {IMAGE_MARK} or {{question}}{hint}"
    )


class Prompts:
    """The user turns of a source.

    Args:
        given: a family, one template's name, or a text of one's own, in which `<image>` stands for all images; without
            one the images come first.
        needs: fields of which each template must have one, so that the task is asked at all.
        knows: the fields that the source can fill in.

    Raises:
        ValueError: a template does not go with the source.
    """

    def __init__(self, given: str, needs: tuple[str, ...] = (), knows: tuple[str, ...] = ()) -> None:
        self.templates = templates(given)
        for template in self.templates:
            if needs and not template.fields & set(needs):
                raise ValueError(f"prompt: found no {_listed(needs)} in {template.text!r}, expected where it stands")
            if odd := sorted(template.fields - set(knows)):
                raise ValueError(
                    f"prompt: found {{{odd[0]}}} in {template.text!r},"
                    f" expected {_listed(knows) if knows else 'no field'} of this source"
                )
        self.needed = set.intersection(*(template.needed for template in self.templates))
        self.words = round(sum(len(each.text.split()) for each in self.templates) / len(self.templates))
        """How long they are, on average."""

    def draw(self, generator: torch.Generator, values: Mapping[str, str] = {}, images: int = 1) -> str:
        """One of the templates, filled in, with `images` marks."""
        which = int(torch.randint(len(self.templates), (), generator=generator)) if len(self.templates) > 1 else 0
        template, marks = self.templates[which], IMAGE_MARK * images
        if IMAGE_MARK not in template.text:
            return (marks and marks + "\n") + template.write(values)
        before, after = (Template(name="", text=part, provenance="") for part in template.text.split(IMAGE_MARK))
        text = before.write(values) + marks + after.write(values)
        return text if images else text.strip()


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(f"{{{name}}}" for name in names)

"""What a synthesis writes: LLaVA's JSON with where each record comes from, what was refused, and a data card.

instructions.json   a list of {"id", "image", "conversations": [{"from", "value"}], "provenance"}
quarantine.jsonl    a line for each request that has no good answer: {"id", "kind", "image", "reason", "sentence",
                    "text"}
README.md           the data card, in the form of those on the Hub
report.json, report.html
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from data_modules.synthesis.kinds import Kind
from data_modules.synthesis.request import Request
from data_modules.synthesis.verdicts import STATES, Verdict
from lightning_mllm.contracts import IMAGE_MARK, Turn

RECORDS = "instructions.json"
QUARANTINE = "quarantine.jsonl"
CARD = "README.md"

Json = dict[str, Any]
NAMES = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True, kw_only=True)
class About:
    """What a data card and a report say of a synthesis besides its answers.

    Args:
        title: of the data set.
        files: role ('captions', 'instances') -> name of the file that pictures were read from.
        backend: who answered, in words; no key and no address with one.
        seed: of the plan.
        kinds: of the requests.
        counts: of pictures, boxes and what was left out, by name.
        prices: money for a million prompt and completion tokens; None where none is counted.
        lost: prompt and completion tokens of calls that may have been charged without an answer.
        rules: whether rules answered, which read captions and boxes whatever the kind shows.
    """

    title: str
    files: Mapping[str, str]
    backend: str
    seed: int
    kinds: Sequence[Kind]
    counts: Mapping[str, int] = field(default_factory=dict)
    prices: tuple[float, float] | None = None
    lost: tuple[int, int] = (0, 0)
    rules: bool = False


def record(request: Request, turns: Sequence[Turn], provenance: Json) -> Json:
    """One record: `id`, `image`, `conversations`, the first of which begins with the image mark, and `provenance`."""
    said = [{"from": NAMES[turn.role], "value": turn.text} for turn in turns]
    said[0]["value"] = f"{IMAGE_MARK}\n{said[0]['value']}"
    return {"id": request.id, "image": request.image, "conversations": said, "provenance": provenance}


def provenance(verdict: Verdict) -> Json:
    """Where a record comes from: kind, model, repairs, and the SHA-256 of all that was sent."""
    request, last = verdict.outcome.request, verdict.outcome.last
    return {
        "kind": request.kind,
        "model": last.answer.model if last.answer else "",
        "request": request.fingerprint,
        "repairs": len(verdict.outcome.attempts) - 1,
        "generator": generator(),
    }


@cache
def generator() -> str:
    """Name and version of what wrote a record."""
    try:
        return f"lightning-mllm {version('lightning-mllm')}"
    except PackageNotFoundError:
        return "lightning-mllm"


def write_records(path: Path, verdicts: Iterable[Verdict]) -> int:
    """Writes the good answers as a JSON list, one record a line, and says how many there are."""
    count = 0
    with beside(path) as stream:
        stream.write("[")
        for verdict in verdicts:
            if verdict.good:
                line = record(verdict.outcome.request, verdict.outcome.last.turns, provenance(verdict))
                stream.write(f"{',' if count else ''}\n{json.dumps(line, ensure_ascii=False)}")
                count += 1
        stream.write("\n]\n")
    return count


def write_quarantine(path: Path, verdicts: Iterable[Verdict]) -> int:
    """Writes a line for each request whose answer was rejected, or that was refused, and says how many there are."""
    count = 0
    with beside(path) as stream:
        for verdict in verdicts:
            if verdict.state in ("rejected", "refused"):
                request = verdict.outcome.request
                line = {"id": request.id, "kind": request.kind, "image": request.image}
                line |= {"reason": verdict.reason_kind, "sentence": verdict.sentence, "text": verdict.text}
                stream.write(f"{json.dumps(line, ensure_ascii=False)}\n")
                count += 1
    return count


def write_card(path: Path, verdicts: Sequence[Verdict], about: About) -> None:
    """Writes the data card."""
    good = [verdict for verdict in verdicts if verdict.good]
    text = page("card.md.jinja").render(
        about=about,
        records=RECORDS,
        quarantine=QUARANTINE,
        generator=generator(),
        states=STATES,
        good=len(good),
        pictures=len({verdict.outcome.request.image for verdict in good}),
        models=sorted({verdict.outcome.last.answer.model for verdict in good if verdict.outcome.last.answer}),
        numbers=Counter((verdict.outcome.request.kind, verdict.state) for verdict in verdicts),
    )
    with beside(path) as stream:
        stream.write(text)


def page(name: str) -> Template:
    """A template of `pages/`, in which nothing of an answer is taken for HTML where the page is HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("pages")),
        autoescape=name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(thousands=lambda value: f"{value:,}", short=_short)
    return environment.get_template(name)


def _short(value: int) -> str:
    """'950', '12.3 k', '4.1 M'."""
    for unit, size in (("M", 1_000_000), ("k", 10_000)):
        if value >= size:
            return f"{value / (1_000_000 if unit == 'M' else 1_000):.1f} {unit}"
    return f"{value:,}"


@contextmanager
def beside(path: Path) -> Iterator[IO[str]]:
    """A new file that takes the place of `path` when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

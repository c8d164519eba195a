"""`report.json` and `report.html` of a synthesis; the page is pages/report.html.jinja, without scripts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import Any

from PIL import Image, ImageDraw

from data_modules.synthesis.context import write_context
from data_modules.synthesis.kinds import Kind
from data_modules.synthesis.output import (
    CARD,
    QUARANTINE,
    RECORDS,
    About,
    beside,
    generator,
    page,
    write_card,
    write_quarantine,
    write_records,
)
from data_modules.synthesis.request import Request
from data_modules.synthesis.things import words_of
from data_modules.synthesis.verdicts import STATES, Verdict
from lightning_mllm.contracts import ImageRef

Json = dict[str, Any]

_IN_NAMES = ("dining", "parking", "living", "building", "ceiling", "morning", "evening", "during", "clothing", "thing")
"""Words that end like actions and are none."""
BINS = {
    "1": 1,
    "2-5": 5,
    "6-10": 10,
    "11-20": 20,
    "21-40": 40,
    "41-80": 80,
    "81-160": 160,
    "161-320": 320,
    "321+": 10**9,
}
"""Words of an answer: name of a range -> the most that are in it."""
RANKED = 12
MOST_READ = 10_000
"""Conversations that are read for what is done to what."""
EXAMPLES = 3
"""Of each kind on the page."""
QUARANTINED = 9
SIDE = 360
"""Pixels of the longer side of a picture on the page."""
SMALL = 120
"""Pictures up to so many pixels wide are drawn, and are shown with their pixels."""
MAX_BYTES = 50_000_000


def write_output(folder: Path, verdicts: Sequence[Verdict], about: About, images: Mapping[str, ImageRef]) -> Json:
    """Writes the records, the quarantine file, the data card and the report of a synthesis into `folder`.

    Args:
        verdicts: on all requests, in their order.
        images: `image` of a request -> its file, for the examples; those that it lacks are shown without.

    Returns:
        What is in `report.json`.
    """
    write_records(folder / RECORDS, verdicts)
    write_quarantine(folder / QUARANTINE, verdicts)
    write_card(folder / CARD, verdicts, about)
    found = measure(verdicts, about)
    with beside(folder / "report.json") as stream:
        stream.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    with beside(folder / "report.html") as stream:
        stream.write(render(found, verdicts, about, images))
    return found


def measure(verdicts: Sequence[Verdict], about: About) -> Json:
    """The numbers of a synthesis: `report.json`."""
    kinds = {kind.name: _kind_row([v for v in verdicts if v.outcome.request.kind == kind.name]) for kind in about.kinds}
    answers = [attempt.answer for verdict in verdicts for attempt in verdict.outcome.attempts if attempt.answer]
    prompt = sum(a.prompt_tokens for a in answers) + about.lost[0]
    completion = sum(a.completion_tokens for a in answers) + about.lost[1]
    money = None if about.prices is None else (prompt * about.prices[0] + completion * about.prices[1]) / 1e6
    pairs = [pair for verdict in verdicts if verdict.good for pair in pairs_of(verdict)]
    return {
        "title": about.title,
        "generator": generator(),
        "seed": about.seed,
        "counts": dict(about.counts),
        "total": {name: sum(row[name] for row in kinds.values()) for name in ("requests", *STATES)},
        "kinds": kinds,
        "reasons": _reasons(verdicts),
        "tokens": {"prompt": prompt, "completion": completion, "lost": sum(about.lost)},
        "money": money,
        "first_words": {
            "questions": _first_words(asked for asked, _ in pairs),
            "answers": _first_words(said for _, said in pairs),
        },
        "doing": _doing(verdicts),
    }


def pairs_of(verdict: Verdict) -> list[tuple[str, str]]:
    """Questions and answers of an accepted request."""
    turns = verdict.outcome.last.turns
    return [(asked.text, said.text) for asked, said in zip(turns[::2], turns[1::2], strict=True)]


def _kind_row(verdicts: Sequence[Verdict]) -> Json:
    states = Counter(verdict.state for verdict in verdicts)
    lengths = sorted(len(said.split()) for each in verdicts if each.good for _, said in pairs_of(each))
    words = Counter(list(BINS)[bisect_left(list(BINS.values()), length)] for length in lengths)
    return {
        "requests": len(verdicts),
        **{state: states[state] for state in STATES},
        "good": sum(verdict.good for verdict in verdicts),
        "answers": len(lengths),
        "median_words": median_low(lengths) if lengths else 0,
        "words": {name: words[name] for name in BINS},
    }


def _reasons(verdicts: Sequence[Verdict]) -> Json:
    """Reason -> how many answers were turned down for it, of which kinds, and how many of them had a good repair."""
    found: dict[str, Json] = {}
    for verdict in verdicts:
        tried = [attempt.reason_kind for attempt in verdict.outcome.attempts if attempt.state == "rejected"]
        if verdict.reason_kind and verdict.reason_kind not in tried[-1:]:
            tried.append(verdict.reason_kind)
        for reason in tried:
            row = found.setdefault(reason, {"answers": 0, "repaired": 0, "kinds": Counter[str]()})
            row["answers"] += 1
            row["repaired"] += verdict.good
            row["kinds"][verdict.outcome.request.kind] += 1
    return dict(sorted(found.items(), key=lambda item: -item[1]["answers"]))


def _first_words(texts: Iterable[str]) -> list[tuple[str, int]]:
    """The most frequent first two words."""
    return Counter(" ".join(re.findall(r"[\w'-]+", text.lower())[:2]) for text in texts if text).most_common(RANKED)


def _doing(verdicts: Sequence[Verdict]) -> list[tuple[str, int]]:
    """The most frequent pairs of an action and a thing that follows it, of the first `MOST_READ`: 'riding ... wave'."""
    found: Counter[str] = Counter()
    for verdict in islice((verdict for verdict in verdicts if verdict.good), MOST_READ):
        for _, said in pairs_of(verdict):
            for mention in words_of(verdict.outcome.request.context).mentions(said):
                before = re.search(r"\b([a-z]{3,}ing)(?: \w+){1,3} $", said[: mention.start])
                if before and before[1] not in _IN_NAMES:
                    found[f"{before[1]} … {mention.word}"] += 1
    return found.most_common(RANKED)


def render(found: Json, verdicts: Sequence[Verdict], about: About, images: Mapping[str, ImageRef]) -> str:
    """The page."""
    chosen = sorted(verdicts, key=lambda verdict: hashlib.sha256(verdict.outcome.request.id.encode()).digest())
    kinds = {kind.name: kind for kind in about.kinds}
    examples = {}
    for name, kind in kinds.items():
        of = [verdict for verdict in chosen if verdict.good and verdict.outcome.request.kind == name]
        repaired = [verdict for verdict in of if verdict.state == "repaired"][:1]
        shown = dict.fromkeys([*repaired, *of])
        examples[name] = [_example(verdict, kind, images) for verdict in list(shown)[:EXAMPLES]]
    turned_down = _spread([verdict for verdict in chosen if verdict.state in ("rejected", "refused")])
    quarantine = [_turned_down(verdict, kinds[verdict.outcome.request.kind], images) for verdict in turned_down]
    return page("report.html.jinja").render(
        about=about,
        found={**found, "examples": examples, "quarantine": quarantine},
        states=STATES,
        quarantine=QUARANTINE,
        generator=generator(),
    )


def _spread(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Some of them: one of each reason, then the rest in their order."""
    first = {verdict.reason_kind: verdict for verdict in reversed(verdicts)}
    return list(dict.fromkeys([*first.values(), *verdicts]))[:QUARANTINED]


def _example(verdict: Verdict, kind: Kind, images: Mapping[str, ImageRef]) -> Json:
    wrong = [attempt for attempt in verdict.outcome.attempts if attempt.state == "rejected" and attempt.answer]
    why = {"why": wrong[0].reason, "text": wrong[0].answer.text if wrong[0].answer else ""} if wrong else None
    return {**_shown(verdict.outcome.request, kind, images), "pairs": pairs_of(verdict), "repaired": why}


def _turned_down(verdict: Verdict, kind: Kind, images: Mapping[str, ImageRef]) -> Json:
    shown = _shown(verdict.outcome.request, kind, images)
    return {**shown, "reason": verdict.reason_kind, "sentence": verdict.sentence, "text": verdict.text[:1500]}


def _shown(request: Request, kind: Kind, images: Mapping[str, ImageRef]) -> Json:
    """Id, picture and context of a request as the page shows them."""
    boxed = kind.boxes and bool(request.context.boxes)
    return {
        "id": request.id,
        "picture": thumbnail(request, images[request.image], boxed) if request.image in images else "",
        "small": request.context.width <= SMALL,
        "boxes": boxed,
        "context": "" if kind.picture else write_context(request.context, boxes=kind.boxes),
    }


def thumbnail(request: Request, file: ImageRef, boxed: bool) -> str:
    """A picture of at most `SIDE` pixels a side as a data URL, its boxes drawn on it; empty if it cannot be read."""
    try:
        with Image.open(io.BytesIO(file.read(MAX_BYTES))) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError):
        return ""
    large = image.width > SMALL
    scale = min(1.0, SIDE / max(image.size)) if large else 4
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS if large else 0
    )
    draw = ImageDraw.Draw(image)
    for box in request.context.boxes if boxed else ():
        x0, y0, x1, y1 = box.box
        edges = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
        draw.rectangle(edges, outline=(217, 131, 36) if box.crowd else (53, 185, 169), width=2 if large else 1)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

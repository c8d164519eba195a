"""A small synthesis with every kind of end, for the tests of what is written of one."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from data_modules.synthesis.checks import checker
from data_modules.synthesis.kinds import KINDS, Kind, read_kind
from data_modules.synthesis.output import About
from data_modules.synthesis.pictures import Picture
from data_modules.synthesis.report import write_output
from data_modules.synthesis.request import Answer, Attempt, Outcome, Rejected, Request
from data_modules.synthesis.verdicts import Verdict, verdicts
from lightning_mllm.contracts import ImageFile
from tests.data_modules.synthesis.contexts import context

KIND: dict[str, Kind] = {name: read_kind(name) for name in KINDS}
TOLD = context("Two dogs run on a beach.", "Dogs at the <sea>.", dog=2)
DETAIL = "Two dogs run along a beach next to the <sea>, and both of them look as if they enjoyed it."
TALK = (
    "Question:\nHow many dogs are there?\n===\nAnswer:\nTwo dogs run on the beach.\n"
    "===\nQuestion:\nIs there a cat?\n===\nAnswer:\nNo."
)


def asked(kind: str, number: int = 1, folder: Path = Path()) -> Request:
    file = ImageFile(folder / f"{number}.jpg")
    return KIND[kind].request(Picture(id=str(number), image=f"coco/{number}.jpg", file=file, context=TOLD), 0)


def tried(request: Request, *texts: str) -> Outcome:
    """What the engine makes of answers one after the other."""
    attempts = []
    for number, text in enumerate(texts):
        id = request.id if not number else f"{request.id}#repair{number}"
        answer = Answer(text=text, model="writer-1", prompt_tokens=100, completion_tokens=10)
        try:
            turns = tuple(checker([KIND[request.kind]])(request, text))
            attempts.append(Attempt(id=id, state="accepted", answer=answer, turns=turns))
        except Rejected as why:
            attempts.append(Attempt(id=id, state="rejected", answer=answer, reason_kind=why.kind, reason=why.sentence))
    return Outcome(request=request, attempts=tuple(attempts))


def refused(request: Request) -> Outcome:
    return Outcome(request=request, attempts=(Attempt(id=request.id, state="refused", reason="a content filter"),))


def ends(folder: Path = Path()) -> list[Outcome]:
    """One request of every end."""
    return [
        tried(asked("conversation", 1, folder), TALK),
        tried(asked("conversation", 2, folder), "Sorry.", TALK),
        tried(asked("detail", 1, folder), DETAIL),
        tried(asked("detail", 2, folder), "A cat.", f"{DETAIL} There are three dogs."),
        refused(asked("detail", 3, folder)),
        tried(asked("dense", 1, folder), DETAIL),
        Outcome(request=asked("dense", 2, folder), attempts=(Attempt(id="2/dense", state="pending"),)),
    ]


ABOUT = About(
    title="Dogs & <beaches>",
    files={"captions": "captions.json"},
    backend="writer-1 over an endpoint",
    seed=3,
    kinds=[KIND["conversation"], KIND["detail"], KIND["dense"]],
    counts={"pictures": 3, "crowd boxes": 0},
    prices=(2.0, 8.0),
)


def files(folder: Path) -> list[Verdict]:
    images = folder / "images"
    images.mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (500, 300), (10 * number, 60, 90)).save(images / f"{number}.jpg")
    found = list(verdicts(ends(images)))
    shown = {
        each.outcome.request.image: ImageFile(images / Path(each.outcome.request.image).name) for each in found[:3]
    }
    write_output(folder / "out", found, ABOUT, shown)
    return found

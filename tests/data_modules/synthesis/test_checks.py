"""Each check finds planted faults, and spares what is true: exemplars, rules' answers, and GPT-4's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_modules.synthesis.backends.rule_based import RuleBased
from data_modules.synthesis.checks import CHECKS, checker, parse
from data_modules.synthesis.kinds import KINDS, read_kind
from data_modules.synthesis.request import Context, Refused, Rejected, Request
from tests.data_modules.synthesis.contexts import context, request, world_context

KITCHEN = context(
    "A woman cuts carrots beside a white oven.",
    "Two cats watch somebody who cooks in a kitchen.",
    person=1,
    cat=2,
    oven=1,
    carrot=3,
    bottle=4,
    book_=1,
)
SAMPLES = Path(__file__).resolve().parents[3] / "../shared/data/format_samples"
KIND = {name: read_kind(name) for name in KINDS}
NAMES = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}


def check(kind: str, text: str, told: Context = KITCHEN, question: str = "What is here?") -> None:
    checker([KIND[kind]])(request(told, kind, question=question), text)


def rejected(kind: str, text: str, told: Context = KITCHEN) -> str:
    """Why a text is rejected; empty where it is accepted."""
    try:
        check(kind, text, told)
    except Rejected as why:
        return why.kind
    return ""


def said(*answers: str) -> str:
    """A conversation of so many answers."""
    return "\n===\n".join(f"Question:\nWhat about {k}?\n===\nAnswer:\n{answer}" for k, answer in enumerate(answers))


GOOD = "A woman stands in a kitchen and cuts carrots next to a white oven. Two cats watch her."

PLANTED = {
    "source named": [
        "According to the captions, a woman stands in a kitchen and cuts carrots next to an oven there.",
        "A woman stands in a kitchen and cuts carrots. The bounding boxes show where the cats sit and watch her.",
        "Based on the provided description, a woman stands in a kitchen and cuts carrots next to an oven.",
        "A woman stands in a kitchen and cuts carrots. The cats are mentioned twice, so they must matter to her.",
        "From the given information, a woman stands in a kitchen and cuts carrots next to an oven, it seems.",
        "The coordinates of the cats tell that both of them watch a woman who cuts carrots next to an oven.",
        "As stated in one sentence, a woman stands in a kitchen and cuts carrots next to a white oven.",
        "A woman stands in a kitchen and cuts carrots, and the descriptions say that two cats watch her there.",
    ],
    "refusal": [
        "As an AI language model, I describe a woman who stands in a kitchen and cuts carrots next to an oven.",
        "I'm sorry, there is a woman who stands in a kitchen and cuts carrots next to an oven, or so.",
        "I cannot see the picture, yet a woman seems to stand in a kitchen and cut carrots next to an oven.",
        "I\u2019m unable to view pictures, yet a woman may stand in a kitchen and cut carrots next to an oven.",
        "No image was provided, so that I can only guess at a woman who cuts carrots next to an oven.",
        "A woman cuts carrots next to an oven in a kitchen. Please provide the picture for more, if you like.",
        "Sorry, but all that there is to tell is that a woman cuts carrots next to an oven in a kitchen.",
    ],
    "coordinates": [
        "A woman cuts carrots next to an oven in a kitchen, at [0.123, 0.204, 0.500, 0.700] of it, and two cats watch.",
        "A woman cuts carrots next to an oven in a kitchen. The cats sit at (0.5, 0.25) and watch her there.",
        "A woman cuts carrots next to an oven in a kitchen. One cat begins at 0.413 of the width and watches.",
        "A woman cuts carrots next to an oven in a kitchen. A cat begins where x1 = 0.4 is, and it watches.",
        "A woman cuts carrots next to an oven in a kitchen, from (12, 40) on, while two cats look at her.",
    ],
    "image mark": [
        f"{GOOD} <image>",
        f"<IMAGE> {GOOD}",
        f"{GOOD} <img> is it.",
        f"[image] {GOOD}",
        f"{GOOD} <|image|>",
        f"{GOOD} <video>",
    ],
    "length": [
        "A woman cuts carrots.",
        "Two cats.",
        "A kitchen with a woman, an oven and carrots.",
        " ".join(f"Word{k}" for k in range(460)) + ".",
        "A woman stands in a kitchen and cuts carrots next to a white oven, while two cats, which sit close to",
    ],
    "duplicate": [
        "Two cats watch a woman who cooks. Two cats watch a woman who cooks. She cuts carrots.",
        "She cuts carrots in a kitchen. The oven is white. Two cats watch her. She cuts carrots in a kitchen.",
        "The white oven stands in the kitchen. A woman cuts carrots. THE WHITE OVEN STANDS IN THE KITCHEN!",
        "There are two cats in the kitchen. A woman cuts carrots.\n\nThere are two cats in the kitchen.",
        "A woman cuts carrots here. A woman cuts carrots here. A woman cuts carrots here. Cats watch.",
    ],
    "unknown object": [
        f"{GOOD} A dog lies on the floor.",
        f"{GOOD} Next to them stands a bicycle.",
        f"{GOOD} A man in a blue shirt talks on a cell phone.",
        f"{GOOD} In the background there is a television.",
        f"{GOOD} Several umbrellas hang above the stove.",
        f"{GOOD} There is also a bowl of apples.",
    ],
    "wrong count": [
        "A woman stands in a kitchen and cuts carrots next to an oven. There are three cats in the picture.",
        "A woman stands in a kitchen and cuts carrots next to an oven. Five bottles stand in front of her.",
        "A woman stands in a kitchen and cuts four carrots next to an oven, and two cats watch her do so.",
        "There are two bottles. A woman stands in a kitchen and cuts carrots next to an oven while cats watch.",
        "A woman stands in a kitchen and cuts carrots next to two white ovens, and two cats watch her do so.",
        "A woman stands in a kitchen and cuts carrots next to an oven. There is one bottle in the picture.",
        "There are 3 bottles in the picture, and a woman stands in a kitchen and cuts carrots next to an oven.",
    ],
}


@pytest.mark.parametrize("kind", ["conversation", "reasoning"])
def test_a_refusal_alone_is_no_fault_of_the_form(kind: str) -> None:
    assert rejected(kind, "As an AI language model, I cannot help.") == "refusal"
    assert rejected(kind, "A dog sits.") == "format"


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, texts in PLANTED.items() for text in texts])
def test_planted_faults_are_found(reason: str, text: str) -> None:
    assert rejected("detail", text) == reason


def test_every_check_has_planted_faults() -> None:
    assert {reason: len(texts) >= 5 for reason, texts in PLANTED.items()} == dict.fromkeys(CHECKS, True)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"{GOOD} There is no dog in the kitchen.",
        f"{GOOD} She might put them on a pizza later, or feed a rabbit.",
        f"{GOOD} One of the four bottles is close to her.",
        f"{GOOD} Two bottles stand on the left, and two more bottles on the right.",
        f"{GOOD} There are two bottles standing close to each other.",
        f"{GOOD} There are nine books in the picture.",
        f"{GOOD} Only one bottle is open.",
        f"{GOOD} The cats are described as curious by anybody who knows them, and the smell gives a description of it.",
        f"{GOOD} It cannot be determined from the image whether visitors are expected.",
        f"{GOOD} Everything costs $1.999 a piece, at 0.25 of the price.",
    ],
)
def test_what_is_true_is_accepted(text: str) -> None:
    check("detail", text)


def test_answers_and_questions_of_a_conversation_are_checked() -> None:
    check("conversation", said("Yes.", "Yes.", "No, there is no dog.", "Two cats."))
    assert rejected("conversation", said("Yes.")) == "length"
    assert rejected("conversation", said("She cuts some carrots there.", "She cuts some carrots there!")) == "duplicate"
    assert rejected("conversation", "Question:\nWhere?\n===\nAnswer:\nHere.\n===\n" * 2) == "duplicate"
    named = "Question:\nWhich captions are there?\n===\nAnswer:\nTwo.\n===\nQuestion:\nWhere?\n===\nAnswer:\nHere."
    assert rejected("conversation", named) == "source named"


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("What colour is the umbrella?", "Red.", "unknown object"),
        ("Where does the brown dog sit?", "On the left.", "unknown object"),
        ("Is the dog asleep?", "No, there is no dog.", ""),
        ("Where is the dog?", "No dog is there.", ""),
        ("How might the dog of a neighbour feel?", "Hungry.", ""),
        ("What colour is the oven?", "White.", ""),
    ],
)
def test_a_question_must_not_take_for_granted_what_is_not_there(question: str, answer: str, reason: str) -> None:
    assert (
        rejected("conversation", f"Question:\n{question}\n===\nAnswer:\n{answer}\n===\n{said('A kitchen.')}") == reason
    )


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ("How many cats are there?", "Two.", True),
        ("How many cats are there?", "There are three cats.", False),
        ("How many bottles are in the picture?", "There are 4.", True),
        ("How many bottles can you see?", "None.", False),
        ("How many bottles stand on the left?", "Two.", True),
        ("How many books are there?", "Nine.", True),
        ("What is the number of carrots?", "Four", False),
    ],
)
def test_numbers_that_are_asked_for(question: str, answer: str, right: bool) -> None:
    text = f"Question:\n{question}\n===\nAnswer:\n{answer}\n===\n{said('A kitchen.')}"
    assert rejected("conversation", text) == ("" if right else "wrong count")


def test_things_of_one_form_are_counted() -> None:
    told = context("A meadow.", sheep=3)
    text = "On this wide and green meadow there is little to be seen but grass. There are {} sheep in the picture."
    assert [rejected("detail", text.format(number), told) for number in ("three", "four")] == ["", "wrong count"]


def test_what_a_caption_says_may_be_said() -> None:
    told = context("Three dogs on a sign with a caption.", dog=1)
    check("detail", "Three dogs are on a sign that has a caption, and one of them is very close to the viewer.", told)


def test_exemplars_pass_their_own_checks() -> None:
    exemplars = 0
    for name in KINDS:
        for example in KIND[name].examples:
            assert rejected(name, example.answer, example.context) == ""
            exemplars += 1
    assert exemplars >= 8


def test_answers_of_rules_pass() -> None:
    for seed in range(4):
        _, told = world_context(seed)
        for kind in KINDS:
            for backend in (RuleBased(), RuleBased(10, "words")):
                each = replace(request(told, kind, str(seed)), question="What is here?")
                try:
                    text = backend.ask(each).text
                except Refused:
                    assert kind == "reasoning"
                    continue
                assert rejected(kind, text, told) == ""


def test_a_description_of_another_picture_is_found() -> None:
    """Of twenty descriptions, each checked against a scene that is not its own."""
    scenes = [world_context(seed)[1] for seed in range(20)]
    texts = [RuleBased().ask(request(told, "detail", str(k))).text for k, told in enumerate(scenes)]
    found = [rejected("detail", text, scenes[k - 1]) != "" for k, text in enumerate(texts)]
    assert sum(found) >= 17


def samples() -> list[tuple[str, str, str, str]]:
    """Picture, kind, question and answer of GPT-4, as released with LLaVA."""
    if not SAMPLES.is_dir():
        pytest.skip("no shared samples of GPT-4's answers")
    lines = (SAMPLES / "llava_qa90_questions.jsonl").read_text().splitlines()
    asked = {each["question_id"]: each for each in map(json.loads, lines)}
    rows = []
    for line in (SAMPLES / "llava_qa90_gpt4_answer.jsonl").read_text().splitlines():
        each = json.loads(line)
        question = asked[each["question_id"]]
        rows.append((question["image"], NAMES[each["category"]], question["text"], each["text"]))
    for line in (SAMPLES / "llava_coco2014_val_gpt4_qa_30x3.jsonl").read_text().splitlines():
        each = json.loads(line)
        rows.append((each["image"], NAMES[each["type"]], each["instruction"], each["output"]))
    return rows


def test_answers_of_gpt4_pass() -> None:
    """All 180; what is known of a picture is what all its answers say, for its captions are not in the samples."""
    rows = samples()
    assert len(rows) == 180
    for image, name, question, answer in rows:
        told = context(*(text for other, _, _, text in rows if other == image))
        # One question each was released of every conversation.
        kind = replace(KIND[name], turns=(1, 1))
        each: Request = request(told, name, question=question)
        text = answer if kind.form == "text" else f"Question:\n{question}\n===\nAnswer:\n{answer}"
        pairs = parse(each, kind, text)
        assert pairs == [(question, answer)]
        assert [sentence for find in CHECKS.values() for sentence in find(each, kind, pairs)] == []

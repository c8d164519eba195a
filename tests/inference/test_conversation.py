"""Earlier turns and their pictures stand before the next question."""

from __future__ import annotations

import pytest

from lightning_mllm.contracts import Sample, Turn
from lightning_mllm.processing.image_in_memory import ImageInMemory
from tests.inference.nets import FEW, model_of
from tests.inference.test_model import BLUE, RED


def test_a_question_stands_behind_those_before_it() -> None:
    model = model_of("llava")
    talk = model.conversation(system="Be brief.")
    first, second = talk.ask("What is it?", RED, FEW), talk.ask("And this?", [BLUE], FEW)
    turns = [
        Turn(role="system", text="Be brief."),
        Turn(role="user", text="<image>\nWhat is it?"),
        Turn(role="assistant", text=first),
        Turn(role="user", text="<image>\nAnd this?"),
    ]
    images = [ImageInMemory(RED), ImageInMemory(BLUE)]
    assert "".join(model.reply(turns, images, FEW)) == second != model.answer(BLUE, "And this?", FEW)
    assert talk.turns == [*turns, Turn(role="assistant", text=second)] and talk.images == images
    processor = model.module.processor
    length = len(processor.encode(Sample(id="", turns=tuple(turns), images=tuple(images)), generate=True).tokens)
    assert model.reply(turns, images).prompt_tokens == length


def test_a_refused_question_leaves_the_conversation_as_it_was() -> None:
    talk = model_of("llava").conversation()
    told = talk.ask("What is it?", RED, FEW)
    with pytest.raises(ValueError, match=r"found a prompt of \d+ tokens, expected at most"):
        talk.ask("word " * 5000)
    with pytest.raises(ValueError, match="cannot read the image"):
        talk.stream("And this?", "absent.png")
    assert [turn.text for turn in talk.turns] == ["<image>\nWhat is it?", told] and len(talk.images) == 1


def test_what_a_reader_saw_of_an_answer_stays() -> None:
    talk = model_of("sphinx").conversation()
    pieces = talk.stream("What is it?", RED, FEW)
    seen = next(pieces)
    pieces.close()
    assert [turn.text for turn in talk.turns] == ["<image>\nWhat is it?", seen]

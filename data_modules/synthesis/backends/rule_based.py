"""Answers without a language model: what captions and boxes say with certainty, in the forms that parsers expect."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Literal, get_args

from data_modules.synthesis.backends.rule_questions import Asked, Scene, draw
from data_modules.synthesis.backends.rule_texts import brief, detail, reasoning
from data_modules.synthesis.request import Answer, Refused, Request, Stop

Answers = Literal["sentences", "words"]
MOST_WORDS = 5
"""Of an answer that is a word or phrase."""


class RuleBased:
    """A backend that answers offline, the same request always with the same text.

    It reads `request.context` and no message: a picture's captions and boxes, also those that a request does not show.
    Tokens are counted as words, for no model made any.

    Args:
        questions: most questions of a conversation.
        answers: of a conversation 'sentences', or 'words' ("red", "yes", "top left"), as VQA asks for.
        seed: another seed, other questions and wordings.
    """

    def __init__(self, questions: int = 8, answers: Answers = "sentences", seed: int = 0) -> None:
        if questions < 1:
            raise ValueError(f"questions: found {questions}, expected at least 1")
        if answers not in get_args(Answers):
            raise ValueError(f"answers: found {answers!r}, expected 'sentences' or 'words'")
        self.questions, self.answers, self.seed = questions, answers, seed

    def ask(self, request: Request) -> Answer:
        """The answer to a request of any kind.

        Raises:
            Refused: captions and boxes of the picture do not allow one.
            Stop: a kind that it does not know.
        """
        text = self.write(request)
        asked = sum(len(message.text.split()) for message in request.messages)
        return Answer(text=text, model="rule-based", prompt_tokens=asked, completion_tokens=len(text.split()))

    def write(self, request: Request) -> str:
        """The text of `ask`."""
        random = Random(hashlib.sha256(f"{self.seed} {request.id}".encode()).digest())
        scene = Scene(request.context)
        if request.kind in ("brief", "detail", "dense"):
            if not request.context.captions:
                raise Refused(f"{request.id}: the picture has no caption, expected one to tell")
            return (brief if request.kind == "brief" else detail)(scene, random)
        if request.kind == "conversation":
            asked = draw(scene, self.questions, random, MOST_WORDS if self.answers == "words" else None)
        elif request.kind == "reasoning":
            found = reasoning(scene, random)
            asked = [] if found is None else [found]
        else:
            raise Stop(f"kind: found '{request.kind}', expected conversation, detail, reasoning, brief or dense")
        if not asked:
            raise Refused(f"{request.id}: captions and boxes answer no question with certainty")
        words = self.answers == "words" and request.kind == "conversation"
        return "\n===\n".join(_block(each, words) for each in asked)


def _block(asked: Asked, words: bool) -> str:
    return f"Question:\n{asked.question}\n===\nAnswer:\n{asked.word if words else asked.sentence}"

"""Questions that follow one another: earlier turns and their pictures stand before the next one."""

from __future__ import annotations

from collections.abc import Callable, Generator

from lightning_mllm.contracts import ImageRef, Turn
from lightning_mllm.inference.pictures import Pictures, question
from lightning_mllm.inference.streaming import AnswerStream
from lightning_mllm.language.generation import Decoding


class Conversation:
    """A conversation with a model (`Model.conversation`).

    Args:
        reply: `Model.reply`.
        system: What the conversation is opened with; None for the template's own.
    """

    def __init__(self, reply: Callable[..., AnswerStream], system: str | None = None) -> None:
        self.reply = reply
        self.turns: list[Turn] = [] if system is None else [Turn(role="system", text=system)]
        self.images: list[ImageRef] = []
        """Of all turns, in order."""

    def ask(self, text: str, image: Pictures = None, decoding: Decoding | None = None) -> str:
        """The answer to the next question, which may bring further pictures.

        Raises:
            ValueError: As `Model.answer`, or the conversation has become longer than what the net reads; it stays as
                it was.
        """
        return "".join(self.stream(text, image, decoding))

    def stream(self, text: str, image: Pictures = None, decoding: Decoding | None = None) -> Generator[str]:
        """The same in pieces; the question is refused here, before the first of them.

        An answer whose reader leaves stays as far as it was written; without a word, neither it nor its question does.
        """
        asked, images = question(image, text)
        turns, images = [*self.turns, *asked], [*self.images, *images]
        return self._told(self.reply(turns, images, decoding), turns, images)

    def _told(self, pieces: AnswerStream, turns: list[Turn], images: list[ImageRef]) -> Generator[str]:
        told, whole = "", False
        try:
            for piece in pieces:
                told += piece
                yield piece
            whole = True
        finally:
            pieces.close()
            if told or whole:
                self.turns, self.images = [*turns, Turn(role="assistant", text=told)], images

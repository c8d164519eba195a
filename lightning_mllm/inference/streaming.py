"""An answer as it is written: pieces of text that joined are the whole answer."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Literal

import torch

from lightning_mllm.language.generation import AnswerEnd


class AnswerStream(Iterator[str]):
    """Generates one answer in a thread of its own, which the first piece starts; `stop` ends it at the next token.

    A piece holds only what no later token changes: no part of a character, of a text that ends the answer, or of white
    space that may be the end.

    Args:
        write: Generates the tokens of the answer, which the given end ends.
        end: What ends an answer of the net.
        decode: Tokens to text.
        stop: Further texts that end the answer and are no part of it.
        end_text: What `end.text` waits for; `decode` leaves it out.
        limit: New tokens that `write` gives at most.
        prompt_tokens: Tokens of the prompt, visual slots included.
        byte_tokens: Tokens that are one byte of a character which has no token of its own.
        watch: Whether the net shows its tokens as it writes; beams are not an answer yet, and come as one piece.
    """

    def __init__(
        self,
        write: Callable[[AnswerEnd], Sequence[int]],
        end: AnswerEnd,
        decode: Callable[[Sequence[int]], str],
        *,
        stop: Sequence[str] = (),
        end_text: str = "",
        limit: int,
        prompt_tokens: int,
        byte_tokens: frozenset[int] = frozenset(),
        watch: bool = True,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.new_tokens = 0
        """So far; the token that ends the answer counts."""
        self.finish_reason: Literal["stop", "length"] | None = None
        """What ended the answer; None before its end, and where it was stopped."""
        self._write, self._end, self._decode = write, end, decode
        self._stop, self._held = tuple(stop), (*stop, end_text)
        self._limit, self._byte_tokens, self._watch = limit, byte_tokens, watch
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = self._over = False
        self._sent = ""

    def __next__(self) -> str:
        if self._over:
            raise StopIteration
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mllm answer", daemon=True)
            self._thread.start()
        piece = self._pieces.get()
        if isinstance(piece, str):
            return piece
        self._over = True
        self._thread.join()
        if piece is not None:
            raise piece
        raise StopIteration

    def stop(self) -> None:
        """Stops generating at the next token, and does not wait for it."""
        self._closed = self._over = True

    def close(self) -> None:
        """Stops generating, and waits until it has."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            seen = _Watch(self)
            with torch.inference_mode():
                tokens = list(self._write(replace(self._end, text=seen) if self._watch else self._end))
            if not self._closed:
                self._finish(seen.tokens or tokens)
            self._pieces.put(None)
        except BaseException as error:  # raised where the pieces are read
            self._pieces.put(error)

    def take(self, tokens: Sequence[int]) -> bool:
        """Sends what is settled of an answer that goes on; whether it ends here."""
        self.new_tokens = len(tokens)
        if self._closed:
            return True
        if self._ended(tokens):
            return False  # generation ends by itself
        last = len(tokens)
        while last and tokens[last - 1] in self._byte_tokens:
            last -= 1
        text = self._decode(tokens[:last])
        if any(stop in text for stop in self._stop):
            return True
        own = self._end.text
        if own is not None and own(tokens):
            return True
        self._send(settled(text, self._held))
        return False

    def _ended(self, tokens: Sequence[int]) -> bool:
        return bool(tokens) and tokens[-1] in self._end.tokens

    def _finish(self, tokens: Sequence[int]) -> None:
        self.new_tokens = len(tokens)
        text = self._decode(list(takewhile(lambda token: token not in self._end.tokens, tokens)))
        own = self._end.text
        stopped = self._ended(tokens) or len(tokens) < self._limit or (own is not None and own(tokens))
        for stop in self._stop:
            text, found, _ = text.partition(stop)
            stopped = stopped or bool(found)
        self._send(text)
        self.finish_reason = "stop" if stopped else "length"

    def _send(self, text: str) -> None:
        if len(text) > len(self._sent) and text.startswith(self._sent):
            self._pieces.put(text[len(self._sent) :])
            self._sent = text


class _Watch:
    """Stands where a text that ends an answer does, which is shown all tokens of the answer after each of them."""

    window = sys.maxsize

    def __init__(self, stream: AnswerStream) -> None:
        self.stream = stream
        self.tokens: list[int] = []

    def __call__(self, tokens: Sequence[int]) -> bool:
        if len(tokens) <= len(self.tokens):
            return False  # `generate` asks again, of a finished answer, where it ended
        self.tokens = list(tokens)
        return self.stream.take(tokens)


def settled(text: str, stops: Sequence[str]) -> str:
    """The part of an unfinished answer that no later token changes.

    Args:
        text: What is written so far; half a character is U+FFFD.
        stops: Texts that end the answer: what may be the beginning of one is held back.
    """
    text = text.rstrip("\ufffd")
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held].rstrip()

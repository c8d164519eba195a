"""A tokenizer's own chat template, read as data: where its answers begin, what ends them, and which of it is learned.

    rendered   <s> <|user|> q <|end|> <|assistant|> a  <|end|> \n     <|end|> ends an answer: generation stops there
    learned     -     -     -    -         -        a  <|end|> -      with generation marks
    learned     -     -     -    -         -        a  <|end|> \n     without: all that is written for the turn

What stands before an answer is, to the letter, what the template writes where one is asked for.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK, Turn
from lightning_mllm.processing.chat_template import count_marks, join_pieces, mark_pieces, split_system
from lightning_mllm.processing.jinja_renderer import GENERATION_MARK, JinjaRenderer, Messages, Rendered
from lightning_mllm.processing.marks import MARKS
from lightning_mllm.processing.stopping import stop_of
from lightning_mllm.processing.template_trial import TemplateBoundsError
from lightning_mllm.processing.text_tokenizer import Piece

PROTECTED = re.compile("\ufdd2([0-9]+)\ufdd3")
"""What stands for a special token of a turn while a template is rendered; noncharacters of Unicode."""

ASKED, ANSWERED = "What is asked?", "What is answered."
"""Stand for a question and an answer where a template is asked what it writes around them."""


class Probe(NamedTuple):
    """What a template writes around a question and its answer."""

    before: str
    tail: str
    """Behind the answer."""
    unmarked: str
    """Of the answer's end, what stands behind the generation marks."""


@dataclass(frozen=True, kw_only=True)
class TokenizerTemplate:
    """A tokenizer's own chat template (jinja).

    An answer is learned from where its generation prompt ends, spaces at the end of that prompt included: a word is one
    token with the space before it. It is learned to the end of the `{% generation %}` marks and, where these stop
    before what ends an answer, to that end; without marks, to the end of what is written for the turn.
    """

    tokenizer: PreTrainedTokenizerFast

    name: ClassVar[str] = "tokenizer"

    @cached_property
    def jinja(self) -> str:
        """The template's text."""
        return self.tokenizer.get_chat_template()

    @cached_property
    def stop(self) -> str:
        """The text that ends an answer, as written behind one; empty if nothing is."""
        return self._stop(self._probe.tail)

    @property
    def writes_bos(self) -> bool:
        """As for `ChatTemplate`: not where the tokenizer puts a token first that the template leaves out."""
        first: list[int] = self.tokenizer("a")["input_ids"][:1]  # pyright: ignore
        return self._probe.before.startswith("".join(self.tokenizer.convert_ids_to_tokens(first)))

    @cached_property
    def trims(self) -> bool:
        """Whether the generation prompt ends with a space, which is left out: it belongs to an answer's first token."""
        return self._jinja(self._messages((Turn(role="user", text=ASKED),)), generate=True).text.endswith(" ")

    @property
    def unmarked(self) -> str:
        """The template's text without generation marks."""
        return GENERATION_MARK.sub("", self.jinja)

    def of(self, task: str) -> TokenizerTemplate:
        """As `ChatTemplate.of`: one way for all."""
        return self

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> list[Piece]:
        """As `ChatTemplate.render`; images stay where they are written.

        Raises:
            ValueError: also if the template refuses the turns, loses or adds image marks, writes nothing that ends an
                answer, or writes before an answer something else than where one is asked for.
        """
        split_system(turns, generate)
        messages = self._messages(turns)
        rendered = self._jinja(messages, generate)
        text = rendered.text
        for mark in MARKS:
            found, marks = text.count(mark), sum(count_marks(turn, mark) for turn in turns)
            if found != marks:
                raise ValueError(f"the tokenizer's template writes {found} {mark} marks, expected {marks}")
        text = text.rstrip(" ") if generate else text
        pieces, end = list[Piece](), 0
        learned = {i for i, turn in enumerate(turns) if turn.learn}
        for start, stop in self._spans(messages, rendered, learned):
            pieces += self._read(text[end:start], False)
            pieces += self._read(text[start:stop], True)
            end = stop
        return join_pieces(pieces + self._read(text[end:], False))

    def answer(self, text: str) -> list[Piece]:
        """As `ChatTemplate.answer`."""
        return self.render((Turn(role="user", text="a"), Turn(role="assistant", text=text)))

    def _spans(self, messages: Messages, rendered: Rendered, learned: Container[int]) -> Iterator[tuple[int, int]]:
        """Where in the text of a conversation those of its answers stand that are learned, each with its end."""
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if answers and not self.stop:
            tail = self._probe.tail
            raise ValueError(f"the tokenizer's template writes {tail!r} behind an answer, expected what ends it")
        text, stops = rendered.text, [stop for _, stop in rendered.marked]
        starts = [len(text[: self._asked(messages, i, rendered)].rstrip(" ")) for i in answers]
        for i, start, limit in zip(answers, starts, [*starts[1:], len(text)], strict=False):
            end = self._marked_end(text, stops, start, limit) if stops else self._end(messages, i + 1, rendered)
            if end > start and i in learned:
                yield start, end

    def _asked(self, messages: Messages, count: int, rendered: Rendered) -> int:
        """Where what is written ends where an answer to the first messages is asked for; the text begins with it."""
        text, ends = rendered.text, rendered.ends
        if ends is not None and text.startswith(self._renderer.prompt.text, ends[count]):
            return ends[count] + len(self._renderer.prompt.text)
        prompt = self._jinja(messages[:count], generate=True).text
        if not text.startswith(prompt):
            at = next(i for i in range(len(prompt)) if not text.startswith(prompt[: i + 1]))
            raise ValueError(
                f"the tokenizer's template writes {text[at : at + 20]!r} before the answer in turn {count + 1}"
                f" and {prompt[at : at + 20]!r} where it is asked for, expected the same"
            )
        return len(prompt)

    def _marked_end(self, text: str, stops: Sequence[int], start: int, limit: int) -> int:
        """The last of the rising `stops` up to `limit`; 0 where none is behind `start`."""
        last = bisect_right(stops, limit) - 1
        end = stops[last] if last >= 0 and stops[last] > start else 0
        # A last answer may end as earlier ones do not.
        return end + len(self._probe.unmarked) if end and text.startswith(self._probe.unmarked, end) else end

    def _end(self, messages: Messages, count: int, rendered: Rendered) -> int:
        """Where in the text of all messages the first of them end."""
        text = rendered.text
        if count == len(messages):
            return len(text)
        if rendered.ends is not None:
            return rendered.ends[count]
        answered = self._jinja(messages[:count], generate=False).text
        if not text.startswith(answered):
            raise ValueError(
                f"the tokenizer's template rewrites what stands before turn {count} as turns are added,"
                " expected a template that only appends, or one with generation marks"
            )
        return len(answered)

    @cached_property
    def _probe(self) -> Probe:
        turns = Turn(role="user", text=ASKED), Turn(role="assistant", text=ANSWERED)
        text, marked, _ = self._jinja(self._messages(turns), generate=False)
        before, found, tail = text.rpartition(ANSWERED)
        if not found:
            raise ValueError(f"the tokenizer's template does not write the answer {ANSWERED!r}, expected it to")
        inside = max((stop for _, stop in marked), default=len(text)) - len(before) - len(found)
        end = self._stop(tail)
        return Probe(before, tail, tail[max(inside, 0) : tail.index(end) + len(end)])

    def _stop(self, tail: str) -> str:
        return stop_of(tail, {*self.tokenizer.get_added_vocab(), *map(str, self.tokenizer.all_special_tokens)})

    def _read(self, text: str, learn: bool) -> list[Piece]:
        """Rendered text as pieces: what stands for special tokens of a turn is text again."""
        if "\ufdd2" not in text and (learn or not any(map(text.__contains__, (*MARKS, LITERAL_MARK)))):
            return [Piece(text, learn, special=True)]
        pieces = list[Piece]()
        for i, part in enumerate(PROTECTED.split(text)):
            if i % 2:
                pieces.append(Piece(self._protected[int(part)], learn))
            elif learn:
                pieces.append(Piece(part, learn, special=True))
            else:
                pieces += [piece._replace(special=not piece.mark) for piece in mark_pieces(part)]
        return pieces

    @cached_property
    def _protected(self) -> list[str]:
        """What a turn may hold and a template must not mistake: special tokens, and what stands for them."""
        special = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return ["\ufdd2", *sorted({*special, *MARKS} - {""}, key=len, reverse=True)]

    @cached_property
    def _patterns(self) -> dict[bool, re.Pattern[str]]:
        """Of what is protected: without marks (False), and with them (True)."""
        kept = {False: set(MARKS), True: set[str]()}
        return {
            every: re.compile("|".join(re.escape(each) for each in self._protected if each not in some))
            for every, some in kept.items()
        }

    @cached_property
    def _numbers(self) -> dict[str, str]:
        return {each: f"\ufdd2{i}\ufdd3" for i, each in enumerate(self._protected)}

    def _protect(self, turn: Turn) -> str:
        """The text of a turn, special tokens in it replaced by what `_read` turns back; marks stay."""
        pattern = self._patterns[turn.role != "user" or turn.literal]
        text = pattern.sub(lambda found: self._numbers[found[0]], turn.text)
        return text.replace(LITERAL_MARK, self._numbers[IMAGE_MARK])

    @cached_property
    def lists(self) -> bool:
        """Whether the template reads turns as lists of images and texts: the words of a plain text would be lost."""
        try:
            return ASKED not in self._renderer([{"role": "user", "content": ASKED}], generate=True).text
        except TemplateBoundsError as error:
            raise ValueError(f"the tokenizer's template{self._place} cannot be used: {error}") from None
        except Exception:
            return True

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        text = self._protect(turn)
        if not self.lists:
            return text
        first, *others = text.split(IMAGE_MARK)
        content = [{"type": "text", "text": first}] if first or not others else []
        for part in others:
            # Such templates put a line end behind an image themselves.
            words = part.removeprefix("\n")
            content += [{"type": "image"}, *([{"type": "text", "text": words}] if words else [])]
        return content

    def _messages(self, turns: Sequence[Turn]) -> Messages:
        return [{"role": turn.role, "content": self._content(turn)} for turn in turns]

    def _jinja(self, messages: Messages, generate: bool) -> Rendered:
        """A conversation as text; special tokens in its turns are protected."""
        try:
            return self._renderer(messages, generate)
        except TemplateBoundsError as error:
            raise ValueError(f"the tokenizer's template{self._place} cannot be used: {error}") from None
        except Exception as error:
            # Templates reach every kind of exception: RecursionError, ZeroDivisionError, SyntaxError, ...
            reason = " ".join((str(error) or type(error).__name__).split())[:300]
            raise ValueError(f"the tokenizer's template{self._place} refuses the conversation ({reason})") from error

    @property
    def _place(self) -> str:
        """Where the template is from, as errors say it."""
        return f" of {self.tokenizer.name_or_path}" if self.tokenizer.name_or_path else ""

    @cached_property
    def _renderer(self) -> JinjaRenderer:
        return JinjaRenderer(self.jinja, dict(self.tokenizer.special_tokens_map))

"""Turns to text, and which of it is learned.

A template is data (`templates/*.yaml`); one renderer writes text and label mask in the same pass, as pieces, so that
the mask cannot drift from the text. A template ends the masked part where the answer's first token begins: the space
before an answer is part of what is learned, as in Llama's and GPT's tokens, and the generation prompt ends without it.

The template's own text and that of the turns stand in different pieces: `</s>` that a template writes is a special
token, and `</s>` in a turn is text (`Piece.special`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from typing import Any, Literal, get_args

import yaml
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IMAGE_MARK, Turn
from lightning_mllm.processing.marks import count_marks
from lightning_mllm.processing.pieces import Piece, join_pieces, mark_pieces, split_system
from lightning_mllm.processing.stopping import stop_of
from lightning_mllm.processing.tokenizer_template import TokenizerTemplate

TEMPLATES = files("lightning_mllm.processing") / "templates"

Images = Literal["front", "before", "first", "stay", "only"]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How turns are written.

    In the wraps `{text}` stands for the turn's text, and `{bos}`, `{eos}` for the tokenizer's own tokens.

    Raises:
        ValueError: a wrap without exactly one `{text}`, or an unknown rule for images.
    """

    name: str
    system: str
    """The system text of a conversation that brings none; empty for none."""
    system_wrap: str = "{text}"
    system_inside: bool = False
    """Whether the wrapped system text opens the first user turn instead of standing before it."""
    between: str = ""
    """What stands before every user turn but the first."""
    user: str
    assistant_prompt: str = ""
    """What opens an answer and is not learned: the generation prompt."""
    assistant: str
    """The learned part of an answer, its end included."""
    end: str = ""
    """What stands behind the last answer, where earlier ones have no such end."""
    learn_end: bool = True
    """Whether `end` is learned with that answer."""
    generation_prompt: str = ""
    """The beginning of an answer that is learned, and yet given where one is asked for."""
    images: Images
    """front: `<image>` moves to the front of its turn, a line end after it (LLaVA); before: in front of all that the
    turn's wrap writes (BLIP-2); first: of all turns, in front of the whole text (SPHINX); only: nothing else is kept of
    the turn, the only one; stay: as written."""
    bos: str = "<s>"
    eos: str = "</s>"
    writes_bos: bool = False
    """Whether the rendered text brings the tokens that a tokenizer would put before it."""
    wordless: ChatTemplate | None = None
    """How a user's images without a word are written, where that is another way; in a file, another template's name."""
    tasks: dict[str, ChatTemplate] = field(default_factory=dict)
    """Task of a sample -> how it is written, where that is another way; in a file, other templates' names."""
    empty_user: str | None = None
    """What a user turn without a text is written as; None for its wrap."""
    empty_assistant: str | None = None
    """What an assistant turn without a text is written as, none of it learned; None for its wrap."""
    round_marks: tuple[str, ...] = ()
    """What stands before an answer and what behind it, by which LLaVA's released `preprocess_v1` and
    `preprocess_llama_2` tell rounds apart (see `found_rounds`); empty where nothing is searched for."""

    def __post_init__(self) -> None:
        for wrap in ("system_wrap", "user", "assistant"):
            count = getattr(self, wrap).count("{text}")
            if count != 1:
                raise ValueError(f"template {self.name!r}, {wrap}: found {count} times {{text}}, expected 1")
        if self.images not in get_args(Images):
            expected = ", ".join(get_args(Images))
            raise ValueError(f"template {self.name!r}, images: found {self.images!r}, expected one of {expected}")

    @property
    def stop(self) -> str:
        """The text that ends an answer, where that is not the end-of-sequence token: what is learned behind one."""
        tail = self.assistant.partition("{text}")[2] + (self.end if self.learn_end else "")
        return "" if "{eos}" in tail else stop_of(self._piece(tail).text)

    def of(self, task: str) -> ChatTemplate:
        """How samples of a task are written."""
        return self.tasks.get(task, self)

    def found_rounds(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns of the rounds that LLaVA's released code finds before one misleads it; all where none does.

        It looks for `round_marks`: one that stands in a turn's text, a question without a text and a last answer
        without one mislead it. An answer with an end in it is found up to there.
        """
        if not self.round_marks:
            return list(turns)
        before, behind = (self._piece(mark).text for mark in self.round_marks)
        found = 0
        for i, turn in enumerate(turns):
            text, *rest = turn.text.split(behind)
            if before in text or (turn.role == "user" and (rest or not text)):
                break
            if rest:
                return [*turns[:i], replace(turn, text=text)]
            if turn.role == "assistant" and text:
                found = i + 1
        return list(turns[:found])

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> list[Piece]:
        """The pieces of a conversation, neighbours of one kind joined; with `generate`, up to where an answer begins.

        Raises:
            ValueError: turns in an order that no conversation has (see `split_system`), or, for a template that keeps
                only images, anything but one image and one answer, or one answer alone.
        """
        if self.wordless is not None and _wordless(turns):
            return self.wordless.render(turns, generate=generate)
        system, turns = split_system(turns, generate)
        if self.images == "only":
            self._check_captions(system, turns)
        return join_pieces(self._pieces(system, turns, generate))

    def _pieces(self, system: str | None, turns: Sequence[Turn], generate: bool) -> Iterator[Piece]:
        written = Piece(self.system, False, special=True) if system is None else Piece(system, False)
        lead = list(self._wrap(self.system_wrap, [written])) if written.text else []
        inside = self.system_inside and bool(turns) and turns[0].role == "user"
        if self.images == "first":
            yield from mark_pieces(IMAGE_MARK * sum(map(count_marks, turns)))
        if not inside:
            yield from lead
        for i, turn in enumerate(turns):
            if turn.role == "user":
                yield self._piece(self.between if i else "")
                if not turn.text and self.empty_user is not None:
                    yield self._piece(self.empty_user)
                    continue
                images, text = ("", turn.text) if turn.literal else self._place_images(turn.text)
                yield from mark_pieces(images)
                opening = lead if inside and i == 0 else []
                told = [Piece(text, False)] if turn.literal else mark_pieces(text)
                yield from self._wrap(self.user, [*opening, *told])
            elif not turn.text and self.empty_assistant is not None:
                yield self._piece(self.empty_assistant)
            else:
                yield self._piece(self.assistant_prompt)
                yield from self._wrap(self.assistant, [Piece(turn.text, True)])
        if turns and turns[-1].role == "assistant":
            yield self._piece(self.end, self.learn_end)
        if generate:
            yield self._piece(self.assistant_prompt + self.generation_prompt)

    def answer(self, text: str) -> list[Piece]:
        """The end of a prompt, and behind it, learned, what follows where `text` is the answer."""
        asked = Turn(role="user", text=IMAGE_MARK if self.images == "only" else "a")
        prompt = [piece for piece in self._pieces("", (asked,), generate=True) if not piece.mark]
        first, *others = self._wrap(self.assistant, [Piece(text, True)])
        first = first._replace(text=first.text.removeprefix(self._piece(self.generation_prompt).text))
        end = self._piece(self.end if self.learn_end else "", True)
        return join_pieces([*prompt, first, *others, end])

    def _place_images(self, text: str) -> tuple[str, str]:
        """What stands before the wrap of a user turn, and what stands in it."""
        count = text.count(IMAGE_MARK)
        if self.images == "stay" or not count:
            return "", text
        if self.images == "only":
            return "", IMAGE_MARK * count
        # Stripped as LLaVA does, and only where an image stands.
        words = text.replace(IMAGE_MARK, "").strip()
        if self.images == "first":
            return "", words
        if self.images == "before":
            return IMAGE_MARK * count, words
        return "", ((IMAGE_MARK + "\n") * count + words).strip()

    def _check_captions(self, system: str | None, turns: Sequence[Turn]) -> None:
        if system is not None or len(turns) > 2:
            found = len(turns) + (system is not None)
            raise ValueError(f"template {self.name!r}: found {found} turns, expected an image and its caption")
        if turns and turns[0].role == "user" and not count_marks(turns[0]):
            raise ValueError(f"template {self.name!r} keeps only {IMAGE_MARK} of a user turn, which has none")

    def _piece(self, wrap: str, learn: bool = False) -> Piece:
        """Text that the template writes."""
        return Piece(wrap.replace("{bos}", self.bos).replace("{eos}", self.eos), learn, special=True)

    def _wrap(self, wrap: str, inner: Sequence[Piece]) -> Iterator[Piece]:
        before, after = wrap.split("{text}")
        learn = bool(inner) and inner[-1].learn
        yield self._piece(before, learn)
        yield from inner
        yield self._piece(after, learn)


Chat = ChatTemplate | TokenizerTemplate


def tokenizer_template(tokenizer: PreTrainedTokenizerFast) -> TokenizerTemplate:
    """The tokenizer's own template.

    Raises:
        ValueError: it has none.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"chat: found a tokenizer without a chat template, expected one of {', '.join(names())}")
    return TokenizerTemplate(tokenizer=tokenizer)


def load_template(name: str, tokenizer: PreTrainedTokenizerFast) -> Chat:
    """The template `name`, with the tokenizer's own begin and end tokens; "tokenizer" is the tokenizer's own template.

    Raises:
        ValueError: no such template, or one that needs a token the tokenizer does not have.
    """
    if name == "tokenizer":
        return tokenizer_template(tokenizer)
    if name not in names():
        near = difflib.get_close_matches(name, [*names(), "tokenizer"], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"chat: found {name!r}, expected one of {', '.join([*names(), 'tokenizer'])}{hint}")
    settings: dict[str, Any] = yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8"))
    if other := settings.pop("wordless", None):
        settings["wordless"] = load_template(other, tokenizer)
    others: dict[str, str] = settings.pop("tasks", {})
    settings["tasks"] = {task: load_template(other, tokenizer) for task, other in others.items()}
    template = ChatTemplate(name=name, **settings)
    wraps = [f.name for f in fields(template) if f.name not in ("name", "system", "wordless", "tasks")]
    written = "".join(str(getattr(template, each)) for each in wraps)
    tokens: dict[str, str] = {}
    for mark, token in (("bos", tokenizer.bos_token), ("eos", tokenizer.eos_token)):
        if token is not None:
            tokens[mark] = str(token)
        elif "{" + mark + "}" in written:
            raise ValueError(f"chat: template {name!r} writes a {mark} token, which the tokenizer does not have")
    return replace(template, **tokens)


def names() -> list[str]:
    """The templates of the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in TEMPLATES.iterdir() if entry.name.endswith(".yaml"))


def _wordless(turns: Sequence[Turn]) -> bool:
    asked = [turn for turn in turns if turn.role == "user"]
    return bool(asked) and not any(turn.literal or turn.text.replace(IMAGE_MARK, "").strip() for turn in asked)

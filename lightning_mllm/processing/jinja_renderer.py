"""A chat template (jinja) applied to messages, each turn written once where the template writes each for itself.

    <s>  USER:\\nq\\n  ASSISTANT: a</s>  USER:\\nq\\n  ASSISTANT:
    opening   turn         turn             turn    generation prompt

A template that reads the messages in one loop, whose body sees nothing but its own message, gives the same text for a
turn wherever it stands. Its syntax tree tells (`writes_each_turn`), so that such texts are kept and put one behind the
other; other templates are applied to the whole conversation. Jinja is always run by transformers, in its sandbox, after
a trial in a process of its own (`template_trial.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateSyntaxError, nodes
from transformers.utils.chat_template_utils import render_jinja_template

from lightning_mllm.processing.template_trial import TemplateBoundsError, check_bounds

GENERATION_MARK = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")

LONG = 40
"""Turns of a conversation that a template is tried on."""
KEPT = 2_000_000
"""Characters of turns that are kept; where there are more, all are forgotten."""

PURE: tuple[type[nodes.Node], ...] = (
    *(nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.CondExpr, nodes.Const, nodes.Name),
    *(nodes.Getitem, nodes.Getattr, nodes.Slice, nodes.Compare, nodes.Operand, nodes.BinExpr, nodes.UnaryExpr),
    *(nodes.Concat, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Filter, nodes.Test),
    nodes.Call,
)
"""Syntax whose value follows from the names in it: what is set in a loop is gone in its next round."""
FILTERS = frozenset({"capitalize", "default", "join", "length", "lower", "replace", "string", "trim", "upper"})
MESSAGES, GENERATE = "messages", "add_generation_prompt"

Spans = list[tuple[int, int]]
Messages = list[dict[str, Any]]
"""Turns as templates read them."""


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    marked: Spans
    """Where its generation marks stand."""
    ends: list[int] | None = None
    """Where its opening and each of its messages end; None of a template that does not write each turn for itself."""


class JinjaRenderer:
    """Applies a chat template.

    Args:
        jinja: Its text.
        tokens: What it calls `bos_token`, `eos_token` and so on.
    """

    def __init__(self, jinja: str, tokens: dict[str, Any]) -> None:
        self.jinja = jinja
        self.tokens = tokens
        self._marks = GENERATION_MARK.search(jinja) is not None
        self._turns: dict[tuple[str, object], Rendered] = {}
        self._held = 0
        self._tried, self._beyond = False, ""

    def _try(self) -> None:
        """Applies the template to conversations that are short, long and none, of texts and of lists."""
        text = "word " * 50
        for content in (text, [{"type": "image"}, {"type": "text", "text": text}]):
            for turns in (0, 1, 2, 3, LONG):
                said = [{"role": "assistant" if i % 2 else "user", "content": content} for i in range(turns)]
                try:
                    self._apply([said], generate=turns % 2 == 1)
                except MemoryError:
                    raise
                except Exception:
                    continue

    def __call__(self, messages: Messages, generate: bool) -> Rendered:
        """The conversation and, with `generate`, the generation prompt behind it.

        Raises:
            TemplateBoundsError: it takes more time or memory than a template may.
            Exception: what the template refuses, or what it is refused.
        """
        if not self._tried:
            self._tried = True
            try:
                check_bounds(self._try)
            except TemplateBoundsError as error:
                self._beyond = str(error)
        if self._beyond:
            raise TemplateBoundsError(self._beyond)
        if not self._each_turn:
            return self._apply([messages], generate)[0]
        parts = [self._opening, *self._each(messages), *([self.prompt] if generate else [])]
        marked, ends, length = Spans(), list[int](), 0
        for part in parts:
            for start, stop in part.marked:
                marked.append((start + length, stop + length))
            length += len(part.text)
            ends.append(length)
        return Rendered("".join([part.text for part in parts]), marked, ends[: len(messages) + 1])

    @cached_property
    def _each_turn(self) -> bool:
        return writes_each_turn(GENERATION_MARK.sub("", self.jinja))

    @cached_property
    def _opening(self) -> Rendered:
        return self._apply([[]], generate=False)[0]

    @cached_property
    def prompt(self) -> Rendered:
        """The generation prompt of a template that writes each turn for itself."""
        return self._behind_opening(self._apply([[]], generate=True)[0])

    def _behind_opening(self, rendered: Rendered) -> Rendered:
        length = len(self._opening.text)
        behind = rendered.marked[len(self._opening.marked) :]
        return Rendered(rendered.text[length:], [(start - length, stop - length) for start, stop in behind])

    def _each(self, messages: Messages) -> list[Rendered]:
        if self._held > KEPT:
            self._turns.clear()
            self._held = 0
        keys = [_key(message) for message in messages]
        new = {key: message for key, message in zip(keys, messages, strict=True) if key not in self._turns}
        if new:
            alone = self._apply([[message] for message in new.values()], generate=False)
            self._turns.update(zip(new, map(self._behind_opening, alone), strict=True))
            self._held += sum(len(rendered.text) for rendered in alone)
        return [self._turns[key] for key in keys]

    def _apply(self, conversations: Sequence[Messages], generate: bool) -> list[Rendered]:
        # Declared to return a str; it returns the texts and, for each text, the spans between generation marks.
        rendered: Any = render_jinja_template(
            conversations=list(conversations),
            chat_template=self.jinja,
            return_assistant_tokens_mask=self._marks,
            add_generation_prompt=generate,
            **self.tokens,
        )
        texts, spans = rendered
        return [
            Rendered(text, [(start, stop) for start, stop in marked])
            for text, marked in zip(texts, spans or [[]] * len(texts), strict=True)
        ]


def _key(message: dict[str, Any]) -> tuple[str, object]:
    content = message["content"]
    # Of an image in a list: None.
    return message["role"], content if isinstance(content, str) else tuple(part.get("text") for part in content)


def writes_each_turn(jinja: str) -> bool:
    """Whether a template, its generation marks left out, gives the same text for a turn wherever it stands.

    That is: an opening that sees no message, one loop over the messages whose body sees only its own, and behind it at
    most what is written where an answer is asked for. False also where it cannot be told.
    """
    try:
        body = Environment(trim_blocks=True, lstrip_blocks=True).parse(jinja).body
    except TemplateSyntaxError:
        return False
    at = next((i for i, node in enumerate(body) if isinstance(node, nodes.For) and _name(node.iter) == MESSAGES), None)
    if at is None:
        return False
    loop, behind = body[at], body[at + 1 :]
    assert isinstance(loop, nodes.For)
    prompts = [node.body for node in behind if isinstance(node, nodes.If) and _name(node.test) == GENERATE]
    whole = not (loop.else_ or loop.test or loop.recursive) and len(prompts) == len(behind)
    alone = not any(node.elif_ or node.else_ for node in behind if isinstance(node, nodes.If))
    return whole and alone and _pure([*body[:at], loop.target, *loop.body, *chain.from_iterable(prompts)])


def _name(node: nodes.Node) -> str | None:
    return node.name if isinstance(node, nodes.Name) else None


def _pure(roots: Iterable[nodes.Node]) -> bool:
    return all(_allowed(node) for root in roots for node in (root, *root.find_all(nodes.Node)))


def _allowed(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Name):
        return node.name not in (MESSAGES, GENERATE, "loop", "self")
    if isinstance(node, nodes.Filter):
        return node.name in FILTERS
    if isinstance(node, nodes.Call):
        # Of functions only the one that refuses; methods are of plain values, none of which the sandbox lets change.
        return isinstance(node.node, nodes.Getattr) or _name(node.node) == "raise_exception"
    return isinstance(node, PURE)

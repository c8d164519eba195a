"""Turns that are written once give the text, and the generation marks, of the template applied to all of them."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_mllm.processing import jinja_renderer
from lightning_mllm.processing.jinja_renderer import GENERATION_MARK, JinjaRenderer, Messages, writes_each_turn
from tests.processing.test_tokenizer_template import CHATML, CONVERSATION, LLAMA_3, TEMPLATES, own
from tests.walks import ROOT

TOKENS: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES: Messages = [{"role": turn.role, "content": turn.text} for turn in CONVERSATION]
LOOP, PROMPT = "{% for m in messages %}", "{% if add_generation_prompt %}A:{% endif %}"
PLAIN = LOOP + "{{ m['content'] }}{% endfor %}"

DEPENDENT = {
    "a turn knows its place": LOOP + "{{ loop.index }}{{ m['content'] }}{% endfor %}",
    "a turn knows the last": LOOP + "{{ m['content'] }}{{ ' ' if not loop.last }}{% endfor %}",
    "a turn knows others": LOOP + "{{ messages[-1]['content'] }}{{ m['content'] }}{% endfor %}",
    "a turn knows the prompt": LOOP + "{{ m['content'] }}{% if add_generation_prompt %}.{% endif %}{% endfor %}",
    "state": "{% set s = namespace(n=0) %}" + LOOP + "{% set s.n = s.n + 1 %}{{ s.n }}{% endfor %}",
    "a cycle": "{% set c = cycler('a', 'b') %}" + LOOP + "{{ c.next() }}{{ m['content'] }}{% endfor %}",
    "the opening knows a turn": "{{ messages[0]['content'] }}" + PLAIN,
    "the prompt knows a turn": PLAIN + "{% if add_generation_prompt %}{{ messages | length }}{% endif %}",
    "two loops": PLAIN + PLAIN,
    "some turns": "{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}",
    "turns told apart": "{% for m in messages if m['role'] == 'user' %}{{ loop.index }}{% endfor %}",
    "no turns": LOOP + "{{ m['content'] }}{% else %}none{% endfor %}",
    "text behind": PLAIN + "</s>",
    "no prompt": PLAIN + "{% if add_generation_prompt %}A:{% else %}</s>{% endif %}",
    "a loop ends": LOOP + "{{ m['content'] }}{% break %}{% endfor %}",
    "a macro": "{% macro w(t) %}{{ t }}{% endmacro %}" + LOOP + "{{ w(m['content']) }}{% endfor %}",
}
ALONE = {
    **{name: jinja for name, (jinja, *_) in TEMPLATES.items() if not name.startswith("lists")},
    "a variable that was set in an earlier turn": LOOP + "{{ x is defined }}{% set x = 1 %}{% endfor %}" + PROMPT,
    "an opening with marks": "{% generation %}a{% endgeneration %}" + TEMPLATES["thinking"][0],
    "a variable of the opening": "{% set x = 'a' %}" + LOOP + "{{ x }}{{ m.content.strip() }}{% endfor %}" + PROMPT,
    "a prompt with marks": CHATML.replace("ANSWER", "{% generation %}{{ m.content }}{% endgeneration %}")
    + "{% if add_generation_prompt %}{% generation %}b{% endgeneration %}{% endif %}",
}


def same(jinja: str, alone: bool) -> None:
    assert writes_each_turn(GENERATION_MARK.sub("", jinja)) == alone
    kept, whole = JinjaRenderer(jinja, TOKENS), JinjaRenderer(jinja, TOKENS)
    whole.__dict__["_each_turn"] = False
    for _ in range(2):
        for count in range(len(MESSAGES) + 1):
            for generate in (False, True):
                (text, marked, ends), expected = kept(MESSAGES[:count], generate), whole(MESSAGES[:count], generate)
                assert (text, marked) == (expected.text, expected.marked)
                assert (ends is None) == (not alone)
                if ends is not None:
                    assert ends == [len(whole(MESSAGES[:i], False).text) for i in range(count + 1)]


@pytest.mark.parametrize("name", ALONE)
def test_turns_written_alone(name: str) -> None:
    same(ALONE[name], True)


@pytest.mark.parametrize("name", [name for name in DEPENDENT if name not in ("no turns", "the opening knows a turn")])
def test_templates_whose_turns_depend_on_others_are_applied_to_the_whole(name: str) -> None:
    same(DEPENDENT[name], False)


@pytest.mark.parametrize("jinja", [*DEPENDENT.values(), LOOP, "{{ strftime_now('%c') }}" + PLAIN])
def test_what_cannot_be_told_is_not_taken_apart(jinja: str) -> None:
    assert not writes_each_turn(jinja)
    assert not writes_each_turn(PLAIN.replace("m['content']", "lipsum()"))
    assert not writes_each_turn(PLAIN.replace("m['content']", "[1, 2] | random"))


def test_the_packages_own_template_is_taken_apart() -> None:
    same((ROOT / "lightning_mllm/backbones/llama/chat_template.jinja").read_text(), True)


def test_turns_are_forgotten_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_renderer, "KEPT", 10)
    same(LLAMA_3, True)


def test_a_turn_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a question is asked, and of lists of images and texts as well."""
    for name in ("chatml", "lists, a blank behind the prompt"):
        used = own(name)
        pieces = used.chat.render(CONVERSATION)
        assert used.chat.render(CONVERSATION) == pieces
        with monkeypatch.context() as patch:
            patch.setattr(jinja_renderer, "render_jinja_template", None)
            assert used.chat.render((*CONVERSATION[2:], *CONVERSATION[:2])) != pieces

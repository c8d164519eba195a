"""Templates of strangers: one sentence, nothing run, in bounded time and memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import Turn
from lightning_mllm.language.tokenizer import byte_tokenizer
from lightning_mllm.processing import template_trial
from lightning_mllm.processing.tokenizer_template import TokenizerTemplate

FULL = os.environ.get("MLLM_FULL") == "1"
FEW = ("loops in loops", "a gigabyte", "a text that doubles with each turn")
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TURNS = Turn(role="user", text="What?"), Turn(role="assistant", text="That.")
RANGE, DOUBLES = "{% for i in range(99999) %}", "{% set n.a = n.a ~ n.a %}{% endfor %}"
TOO_MUCH = {
    "loops in loops": RANGE + RANGE + "{% endfor %}{% endfor %}",
    "a gigabyte": "{{ 'x' * 1000000000 }}",
    "a gigabyte in pieces": RANGE + "{{ 'x' ~ 'xxxxxxxxxx' * 2000 }}{% endfor %}",
    "two gigabytes of blanks": "{{ 'x'.center(2000000000) }}",
    "a wide number": "{{ '%2000000000d' % 1 }}",
    "a text that doubles": "{% set n = namespace(a='xx') %}{% for i in range(40) %}" + DOUBLES,
    "a text that doubles with each turn": "{% set n = namespace(a='xx') %}{% for m in messages %}" + DOUBLES,
    "replaced": "{{ ('a' * 30000).replace('a', 'b' * 30000) }}",
    "a long list as JSON": "{{ (range(99999) | list * 500) | tojson }}",
}
REFUSED = {
    "a range of a billion": "{% for i in range(10**9) %}{% endfor %}",
    "a macro that calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "brackets in brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "conditions in conditions": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "loops without an end": "{% for i in [1] %}" * 100 + "{% endfor %}" * 100,
    "classes": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ [].__class__.__base__.__subclasses__() }}",
    "functions' globals": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "a shell": "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
    "messages that change": "{{ messages.append(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os.getcwd() }}",
    "an unknown name": "{{ nothing.here }}",
    "an unknown filter": "{{ 1 | nothing }}",
    "an unknown tag": "{% exec 1 %}",
    "half a tag": "{% if x %}",
    "a division by zero": "{{ 1 / 0 }}",
    "a break outside a loop": "{% break %}",
    "a number as a text": "{{ 1 | wordwrap }}",
    "what it raises itself": "{{ raise_exception('not for you\n' * 500) }}",
}


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(template_trial, "SECONDS", 1)
    tokenizer = byte_tokenizer()
    tokenizer.name_or_path = "stranger/model"
    return tokenizer


@pytest.mark.fault
def test_hostile_templates(
    stranger: PreTrainedTokenizerFast, tmp_path: Path, fault_row: Callable[[str, str, str], None]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chosen = {**TOO_MUCH, **REFUSED}
    if not FULL:
        chosen = {name: each for name, each in chosen.items() if name not in TOO_MUCH or name in FEW}
    templates = [
        (name, template)
        for name, hostile in chosen.items()
        for template in ((PLAIN + hostile, hostile + PLAIN) if FULL else (PLAIN + hostile,))
    ]
    for name, template in templates:
        stranger.chat_template = template
        rule = "cannot be used: it " if name in TOO_MUCH else "(refuses the conversation|cannot be used: it )"
        with pytest.raises(ValueError, match=rf"the tokenizer's template of stranger/model {rule}") as caught:
            TokenizerTemplate(tokenizer=stranger).render(TURNS)
        assert len(str(caught.value)) < 500 and "\n" not in str(caught.value), name
    assert not list(tmp_path.iterdir())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    count = len(templates)
    fault_row("T13", f"{count} of {count}", "hostile and broken chat templates: one sentence, nothing run, bounded")


def test_a_plain_template_is_tried_once(stranger: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger.chat_template = PLAIN
    template = TokenizerTemplate(tokenizer=stranger)
    assert "".join(piece.text for piece in template.render(TURNS)) == "<s>user: What?</s>assistant: That.</s>"
    monkeypatch.setattr(template_trial.os, "fork", lambda: pytest.fail("tried again"))
    assert template.render(TURNS[:1], generate=True)


def test_a_trial_that_ends_its_process() -> None:
    with pytest.raises(template_trial.TemplateBoundsError, match=r"ends the process \(exit code 7\)"):
        template_trial.check_bounds(lambda: template_trial.os._exit(7))


def test_a_template_that_cannot_be_tried(stranger: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    stranger.chat_template = PLAIN
    monkeypatch.setattr(template_trial.os, "fork", fork)
    with pytest.raises(ValueError, match=r"cannot be tried in a process of its own \(Resource temporarily"):
        TokenizerTemplate(tokenizer=stranger).render(TURNS)


def test_a_trial_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_trial, "WAIT", 0.1)
    with pytest.raises(template_trial.TemplateBoundsError, match=r"not done after 0\.1 seconds"):
        template_trial.check_bounds(lambda: template_trial.time.sleep(5))

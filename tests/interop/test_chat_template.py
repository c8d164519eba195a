"""Chat templates of folders in the layout of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import Turn
from lightning_mllm.interop.chat_template import chat_template, folder_template
from lightning_mllm.interop.tokenizer import multimodal_tokenizer
from lightning_mllm.processing.chat import load_template, names
from lightning_mllm.processing.chat_template import ChatTemplate
from tests.interop.test_folder import byte_tokenizer

CONVERSATIONS = [
    [("user", "<image>\nWhat is it?")],
    [("user", " Hm, <image> what? ")],
    [("user", "hello")],
    [("user", "<image>\nWhat?"), ("assistant", 'a "cat"\\n'), ("user", "and <image> <image>"), ("assistant", "b")],
    [("system", "Be\n{brief}."), ("user", "q {text} {{ x }}"), ("assistant", "b"), ("user", "<image>")],
    [("user", "<image>"), ("assistant", "A caption.")],
]


@pytest.mark.parametrize("name", names())
def test_the_exported_template_writes_what_ours_writes(name: str) -> None:
    tokenizer = byte_tokenizer()
    chat = load_template(name, tokenizer)
    assert isinstance(chat, ChatTemplate)
    exported = multimodal_tokenizer(tokenizer, chat_template(chat))
    compared = 0
    for conversation in CONVERSATIONS:
        turns = [Turn(role=role, text=text) for role, text in conversation]  # pyright: ignore[reportArgumentType]
        ask = turns[-1].role == "user"
        try:
            ours = "".join(piece.text for piece in chat.render(turns, generate=ask))
        except ValueError:
            assert chat.images == "only"
            continue
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        assert rendered(exported, messages, ask) == ours
        compared += 1
    assert compared >= 3
    image: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    asked = rendered(exported, [{"role": "user", "content": image}], True)
    assert asked == rendered(exported, [{"role": "user", "content": "<image>\nWhat is it?"}], True)


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], ask: bool) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    assert isinstance(text, str)
    return text


@dataclass(frozen=True)
class Own:
    """A tokenizer's own template."""

    jinja: str
    trims: bool = True
    lists: bool = False

    @property
    def unmarked(self) -> str:
        return self.jinja


TURNS = "{% for message in messages %}{{ message['role'] ~ ': ' ~ message['content'] }}\n{% endfor %}"
OUTER_BLANKS = ["", "\n", "\n\n", "  ", " \n  ", "\t"]


@pytest.mark.parametrize("trims", [True, False])
@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("behind", OUTER_BLANKS)
def test_white_space_around_a_template_stays(trims: bool, lists: bool, behind: str) -> None:
    tokenizer = byte_tokenizer()
    messages = [{"role": "user", "content": "What?"}]
    for before in OUTER_BLANKS:
        for inside in (TURNS, f"Hi.{TURNS}", "{{ bos_token }}" + TURNS + "{{ eos_token }}"):
            own: Any = Own(f"{before}{inside}{behind}", trims, lists)
            exported = multimodal_tokenizer(tokenizer, folder_template(own))
            tokenizer.chat_template = own.jinja
            assert rendered(exported, messages, False) == rendered(tokenizer, messages, False), own.jinja
            expected = rendered(tokenizer, messages, True)
            assert rendered(exported, messages, True) == (expected.rstrip(" ") if trims else expected), own.jinja

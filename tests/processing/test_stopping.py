"""What ends an answer is what is learned behind one, and it is found in the last tokens."""

from __future__ import annotations

import pytest

from lightning_mllm.processing.chat import load_template, names
from lightning_mllm.processing.chat_template import ChatTemplate
from lightning_mllm.processing.stopping import StopText, stop_of
from tests.processing.test_prompts import processor
from tests.processing.tokenizer import byte_level_tokenizer, llama_tokenizer


@pytest.mark.parametrize(
    ("tail", "tokens", "expected"),
    [
        ("<|im_end|>\n", ["<|im_end|>", "</s>"], "<|im_end|>"),
        ("<end> </s>", ["</s>", "<end>"], "<end>"),
        ("<|im_end|>\n", [], "<|im_end|>"),
        ("\n###", [], "\n###"),
        ("\n", [], "\n"),
        (" \n", [], "\n"),
        ("  ", ["</s>"], ""),
        ("", [], ""),
    ],
)
def test_the_end_is_the_first_token_or_all_that_is_written(tail: str, tokens: list[str], expected: str) -> None:
    assert stop_of(tail, tokens) == expected


def test_every_template_of_the_package_has_the_end_that_it_learns() -> None:
    stops = {}
    for name in names():
        template = load_template(name, llama_tokenizer())
        assert isinstance(template, ChatTemplate)
        stops[name] = template.stop
        others = [*template.tasks.values(), *([template.wordless] if template.wordless else [])]
        assert all(other.stop == template.stop for other in others)
    assert {name: stop for name, stop in stops.items() if stop} == {
        **dict.fromkeys(("blip2", "blip2_caption", "blip2_text", "plain"), "\n"),
        "llava_v0": "\n###",
        "sphinx": "\n###",
    }


@pytest.mark.parametrize("tokenizer", [llama_tokenizer(), byte_level_tokenizer()])
@pytest.mark.parametrize("text", ["###", "\n###", "\n"])
def test_a_text_is_found_with_the_token_that_completes_it(tokenizer, text: str) -> None:
    stop = StopText(tokenizer, text)
    for answer in ("", "a dog", "how many \U0001f415 there"):
        tokens = tokenizer(answer + text, add_special_tokens=False)["input_ids"]
        assert stop(tokens)
        assert not any(stop(tokens[:i]) for i in range(len(tokens)) if text not in tokenizer.decode(tokens[:i]))


def test_an_end_of_several_tokens_is_a_text_and_no_token() -> None:
    own = processor("sphinx")
    assert own.stop_rule.tokens == [own.tokenizer.eos_token_id]
    assert own.stop_rule.text is not None and own.stop_rule.text.text == "\n###"
    assert processor("vicuna_v1").stop_rule.text is None

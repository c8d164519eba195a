"""Tokenizers' own templates: ends are those that were learned, and prompts are what training showed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, LITERAL_MARK, Sample, Turn
from lightning_mllm.processing import tokenizer_template
from lightning_mllm.processing.chat import load_template, names
from lightning_mllm.processing.chat_template import ChatTemplate
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.processor import Processor
from lightning_mllm.processing.tokenizer_template import TokenizerTemplate
from tests.processing.test_chat import learned, text, turns
from tests.processing.test_processor import RED
from tests.processing.tokenizer import byte_level_tokenizer, llama_tokenizer

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}ANSWER{% else %}"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARK, END = "{% generation %}", "{% endgeneration %}"
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|stop|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
TEMPLATES: dict[str, tuple[str, str, str]] = {
    # jinja, what is learned of the answer "A dog.", what ends it
    "chatml": (CHATML.replace("ANSWER", "{{ m['content'] }}<|im_end|>\n"), "A dog.<|im_end|>\n", "<|im_end|>"),
    "chatml, the end in the marks": (
        CHATML.replace("ANSWER", MARK + "{{ m['content'] }}<|im_end|>" + END + "\n"),
        "A dog.<|im_end|>",
        "<|im_end|>",
    ),
    "chatml, the end behind the marks": (
        CHATML.replace("ANSWER", MARK + "{{ m['content'] }}" + END + "<|im_end|>\n"),
        "A dog.<|im_end|>",
        "<|im_end|>",
    ),
    "chatml, the opening in the marks": (
        CHATML.replace(
            "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}ANSWER{% else %}",
            "{% if m['role'] == 'assistant' %}"
            + MARK
            + "<|im_start|>assistant\n{{ m['content'] }}<|im_end|>"
            + END
            + "\n{% else %}<|im_start|>{{ m['role'] }}\n",
        ),
        "A dog.<|im_end|>",
        "<|im_end|>",
    ),
    "thinking": (
        CHATML.replace("ANSWER", MARK + "<think>\n\n</think>\n{{ m['content'] }}<|im_end|>" + END + "\n").replace(
            "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n\n</think>\n{% endif %}"
        ),
        "A dog.<|im_end|>",
        "<|im_end|>",
    ),
    "llama 3": (LLAMA_3, "A dog.<|eot_id|>", "<|eot_id|>"),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
        " A dog.</s>",
        "</s>",
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "A dog.<end_of_turn>\n",
        "<end_of_turn>",
    ),
    "lists, a blank behind the prompt": (
        "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ eos_token if m['role'] == 'assistant' else ' ' }}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}",
        " A dog.</s>",
        "</s>",
    ),
    "a text of several tokens": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n###\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        " A dog.\n###\n",
        "\n###",
    ),
}


def processor(chat: str, tokenizer: Any, jinja: str = "") -> Processor:
    if jinja:
        tokenizer.chat_template = jinja
    return Processor(tokenizer, load_template(chat, tokenizer), ImagePolicy(size=8, fit="squash"), 2, 999)


def own(name: str, tokenizer: Any = None) -> Processor:
    return processor("tokenizer", tokenizer or llama_tokenizer(*SPECIAL), TEMPLATES[name][0])


CONVERSATION = turns("<image>\nWhat is it?", "A dog.", "And <now>?", "2 dogs.", "How many?", "Yes.")


def same_prefix(used: Processor, conversation: tuple[Turn, ...]) -> None:
    """Before each answer that is learned, training shows the tokens of its generation prompt, and one begin token."""

    def encode(turns: tuple[Turn, ...], generate: bool) -> tuple[list[int], list[int]]:
        images = (RED,) * sum(turn.text.count(IMAGE_MARK) for turn in turns)
        coded = used.encode(Sample(id="s", turns=turns, images=images), generate=generate)
        return coded.tokens.tolist(), coded.labels.tolist()

    tokens, labels = encode(conversation, False)
    learned = [label != IGNORE for label in labels]
    starts = [i for i in range(len(tokens)) if learned[i] and not (i and learned[i - 1])]
    asked = [i for i, turn in enumerate(conversation) if turn.role == "assistant"]
    assert len(starts) == len(asked)
    for start, i in zip(starts, asked, strict=True):
        assert encode(conversation[:i], True)[0] == tokens[:start]
    bos: Any = used.tokenizer.bos_token_id
    if bos is not None and used.begin == [bos]:
        assert tokens[:start].count(bos) == (0 if "instructblip" in used.chat.name else 1)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["llama", "llama 2", "bytes"])
def test_training_shows_the_generation_prompt_token_for_token(name: str, kind: str) -> None:
    if kind == "bytes":
        tokenizer = byte_level_tokenizer()
        tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    else:
        tokenizer = llama_tokenizer(*SPECIAL, normalised=kind == "llama 2")
    same_prefix(own(name, tokenizer), CONVERSATION)


# Of several questions, InstructBLIP and BLIP-2 begin each anew, Llama 2 too.
SINGLE = {"blip2", "blip2_text", "llama_2"}


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", sorted(set(names()) - {"blip2_t5"}))
def test_training_shows_the_generation_prompt_of_the_packages_templates(name: str, normalised: bool) -> None:
    used = processor(name, llama_tokenizer(normalised=normalised))
    assert isinstance(used.chat, ChatTemplate)
    if name == "blip2_caption":  # the begin token is learned, and given where a caption is asked for
        row = used.encode(Sample(id="s", turns=turns("<image>", "A dog."), images=(RED,)))
        asked = used.encode(Sample(id="s", turns=turns("<image>"), images=(RED,)), generate=True)
        assert row.tokens[: len(asked.tokens)].tolist() == asked.tokens.tolist()
        return
    same_prefix(used, CONVERSATION[:2] if used.chat.images == "only" or name in SINGLE else CONVERSATION)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_is_learned_and_ends_an_answer(name: str) -> None:
    _, answer, end = TEMPLATES[name]
    used = own(name)
    assert learned(used.chat.render(turns("Is it?", "A dog.", "And now?", "A dog.")))[-1:] == [answer]
    assert learned(used.chat.answer("A dog.")) == [answer]
    assert used.chat.stop == end
    tokens = used.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if end in SPECIAL or end == "</s>":
        last = used.tokenizer.convert_tokens_to_ids(end)
        assert (
            last in used.stop_rule.tokens
            and last in tokens
            and used.stop_rule.text is None
            and not used.stop_rule.strings
        )
    else:
        assert (
            used.stop_rule.tokens == [2]
            and used.stop_rule.text is not None
            and used.stop_rule.text(tokens[:-1])
            and used.stop_rule.strings == [end]
        )
    assert used.decode(tokens) == "A dog."


def test_what_is_not_written_or_not_the_same_is_told() -> None:
    endless = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }} {% endfor %}"
    used = processor("tokenizer", llama_tokenizer(), endless)
    assert text(used.chat.render(turns("q"), generate=True)) == "[user]q"
    with pytest.raises(ValueError, match="writes ' ' behind an answer, expected what ends it"):
        used.chat.render(turns("q", "a"))
    other = CHATML.replace("ANSWER", MARK + "{{ m['content'] }}<|im_end|>" + END).replace("assistant\n{%", "model\n{%")
    with pytest.raises(ValueError, match=r"writes 'assistant\\na<\|im_end\|' before the answer in turn 2 and 'model"):
        processor("tokenizer", llama_tokenizer(*SPECIAL), other).chat.render(turns("q", "a"))
    strict = "{{ raise_exception('no system, please') if messages[0]['role'] == 'system' }}" + LLAMA_3
    with pytest.raises(ValueError, match=r"template refuses the conversation \(no system, please\)"):
        processor("tokenizer", llama_tokenizer(*SPECIAL), strict).chat.render(turns("q", "a", system="s"))


def test_a_begin_token_that_the_template_leaves_out_is_put_first() -> None:
    for name, writes in (("llama 3", True), ("chatml", False)):
        used = own(name)
        row = used.encode(Sample(id="s", turns=turns("q", "a")))
        assert used.chat.writes_bos == writes and row.tokens.tolist().count(1) == 1 and row.tokens[0] == 1


def test_marks_of_images_become_the_lists_that_a_template_reads() -> None:
    used = own("lists, a blank behind the prompt")
    asked = used.chat.render(turns("<image>\nWhat <image>?", "A dog.", "Hm?"), generate=True)
    assert text(asked) == "USER: <image>\nWhat <image>\n? ASSISTANT: A dog.</s>USER: Hm? ASSISTANT:"
    assert [piece.mark for piece in asked].count(True) == 2


@pytest.mark.parametrize("name", ["chatml", "chatml, the end in the marks"])
def test_a_long_conversation_costs_little_more_than_its_turns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn is read once, the tokenizer's template and tokens once in all, however many turns stand before."""
    used, calls = own(name), Counter[str]()
    pieces = used.chat.render(CONVERSATION)

    def counted(owner: Any, method: str) -> None:
        original = getattr(owner, method)

        def count(*args: Any, **settings: Any) -> Any:
            calls[method] += 1
            return original(*args, **settings)

        monkeypatch.setattr(owner, method, count)

    counted(TokenizerTemplate, "_protect")
    counted(type(used.tokenizer), "get_chat_template")
    counted(tokenizer_template.re, "escape")
    assert used.chat.render(CONVERSATION) == pieces
    assert calls["_protect"] == len(CONVERSATION) and calls.keys() == {"_protect"}


@pytest.mark.parametrize("name", ["chatml", "chatml, the end in the marks", "llama 3", "mistral"])
def test_a_turn_that_is_not_to_be_learned_is_not(name: str) -> None:
    """The tokens are the same; an answer that is not learned is masked with its end, and others are not."""
    used = own(name)
    labels: list[list[int]] = []
    for masked in (None, 1, 3):
        said = tuple(replace(turn, learn=i != masked) for i, turn in enumerate(CONVERSATION[2:]))
        encoded = used.encode(Sample(id="a", turns=said))
        labels.append(encoded.labels.tolist())
    every, without_first, without_second = labels
    first = [i for i, label in enumerate(every) if label != without_first[i]]
    second = [i for i, label in enumerate(every) if label != without_second[i]]
    assert first and second and max(first) < min(second)
    assert {*first, *second} == {i for i, label in enumerate(every) if label != IGNORE}
    assert all(without_first[i] == IGNORE for i in first) and all(without_second[i] == IGNORE for i in second)


def test_words_and_an_image_in_one_turn() -> None:
    """`<image>` as words beside an image is the text, even of a tokenizer that has it as a special token."""
    jinja = TEMPLATES["chatml"][0]
    used = processor("tokenizer", llama_tokenizer(*SPECIAL, "<image>"), jinja)
    said = turns(f"<image>\nWhere is {LITERAL_MARK}?", "There.")
    encoded = used.encode(Sample(id="a", turns=said, images=(RED,)))
    image = used.tokenizer.convert_tokens_to_ids("<image>")
    shown = [token for token, kind in zip(encoded.tokens.tolist(), encoded.kinds.tolist(), strict=True) if kind == 0]
    assert image not in shown and "Where is <image>?" in used.tokenizer.decode(shown)
    assert encoded.prompt == "Where is <image>?"

"""The prompt of training is, token by token, the one that the net is given where it answers; else it is told."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.commands.prompt_parity import answer_begins, prompts, template_of
from lightning_mllm.contracts import IGNORE, Documents, Encoded, Sample, Turn
from lightning_mllm.language.seq2seq import TINY_T5
from lightning_mllm.processing.image_in_memory import ImageInMemory

RED = ImageInMemory(Image.new("RGB", (20, 12), "red"))


def asked(*texts: str, **about: Any) -> Sample:
    roles: tuple[Any, ...] = ("user", "assistant")
    turns = tuple(Turn(role=roles[k % 2], text=text) for k, text in enumerate(texts))
    return Sample(id="a", turns=turns, images=(RED,) if "<image>" in texts[0] else (), **about)


@pytest.mark.parametrize("chat", ["vicuna_v1", "llama_2", "sphinx", "cogvlm_chat", "plain", "blip2"])
def test_packaged_templates_agree(chat: str) -> None:
    module = LLaVA.tiny(chat=chat)
    texts = ("<image>", "red") if chat == "plain" else ("<image>\nWhat?", "Red.", "And?", "Only red.")
    found = prompts(module.processor, asked(*texts))
    assert (found.verdict, found.difference) == ("agree", "")
    assert found.generation is not None and found.begins == len(found.generation.tokens)


def test_what_a_template_opens_an_answer_with_is_learned_and_given() -> None:
    processor = LLaVA.tiny(chat="blip2").processor
    sample = asked("<image>", "red")
    found = prompts(processor, sample)
    assert template_of(processor, sample).name == "blip2_caption" and found.verdict == "agree"
    assert found.generation is not None and len(found.generation.tokens) == found.begins + 1


def test_an_encoder_and_a_q_former_read_the_same() -> None:
    processor = Blip2.tiny(language=TINY_T5, chat="blip2_t5", reader="").processor
    found = prompts(processor, asked("<image>What?", "Red."))
    assert found.verdict == "agree" and found.training.targets is not None and found.training.query_text is not None


def test_a_sample_without_an_answer_takes_its_first_reference() -> None:
    found = prompts(LLaVA.tiny().processor, asked("<image>\nWhat?", references=("Blue.", "Green.")))
    learned = [label for label in found.training.labels.tolist() if label != IGNORE]
    assert found.verdict == "agree" and bytes(LLaVA.tiny().processor.decode(learned), "utf-8") == b"Blue."


class Broken:
    """A processor that asks in other words than it trains."""

    def __init__(self, change: Any) -> None:
        self.own, self.change = LLaVA.tiny().processor, change
        self.chat, self.tokenizer = self.own.chat, self.own.tokenizer

    def encode(self, sample: Sample, *, generate: bool = False, **how: Any) -> Encoded:
        row = self.own.encode(sample, generate=generate, **how)
        return self.change(row) if generate else row


def shorter(row: Encoded) -> Encoded:
    return replace(row, tokens=row.tokens[:-1], labels=row.labels[:-1], kinds=row.kinds[:-1])


def other(row: Encoded) -> Encoded:
    return replace(row, tokens=torch.cat([row.tokens[:3], row.tokens[3:] * 0 + 9]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shorter, r"the answer begins at token (\d+) in training, and the prompt ends at \d+ where asked"),
        (other, r"token 3 is \S+ in training and \S+ where asked"),
        (lambda row: replace(row, kinds=row.kinds * 0), "the same tokens are of other kinds where asked"),
    ],
)
def test_a_difference_is_a_sentence(change: Any, sentence: str) -> None:
    found = prompts(Broken(change), asked("<image>\nWhat?", "Red."))
    told = re.fullmatch(sentence, found.difference)
    assert found.verdict == "differ" and told and (not told.groups() or int(told[1]) == found.begins)


def test_a_cut_row_and_a_text_have_nothing_to_compare() -> None:
    sample = asked("<image>\nWhat?", "Red.", "And " * 20, "Red.")
    whole = LLaVA.tiny().processor.encode(sample)
    tight = LLaVA.tiny(max_length=len(whole.tokens) - 30).processor
    assert prompts(tight, sample).verdict == "cut"
    end = LLaVA.tiny(max_length=len(whole.tokens) - 1).processor
    assert prompts(end, sample).verdict == "agree"  # what is cut stands behind the prompt
    text = Sample(id="t", documents=Documents(texts=("one", "two")))
    assert prompts(tight, text).verdict == "one"


def test_nothing_learned_begins_at_the_end() -> None:
    row = LLaVA.tiny().processor.encode(asked("<image>\nWhat?", "Red."))
    assert answer_begins(replace(row, labels=row.labels * 0 + IGNORE)) == len(row.tokens)

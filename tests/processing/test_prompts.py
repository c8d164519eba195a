"""Rows of BLIP-2 and InstructBLIP: visual vectors first, prompts and answers with limits of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_mllm.contracts import IGNORE, Batch, Sample, TokenKind
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.processor import Processor, TextLimits
from lightning_mllm.processing.query_text import QueryText
from tests.processing.test_processor import BLUE, RED, sample
from tests.processing.tokenizer import llama_tokenizer

SLOTS = 3


def processor(chat: str, **settings: Any) -> Processor:
    tokenizer = llama_tokenizer()
    return Processor(
        tokenizer, load_template(chat, tokenizer), ImagePolicy(size=8, fit="squash"), SLOTS, 256, **settings
    )


def one(question: str = "<image>what is it ?", answer: str = "a dog") -> Sample:
    return sample(question, answer, images=(RED,))


def words(own: Processor, tokens: Any) -> str:
    return own.tokenizer.decode(tokens)  # pyright: ignore[reportReturnType]


def ids(own: Processor, text: str) -> list[int]:
    return own.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("chat", ["blip2", "blip2_caption"])
def test_an_empty_prompt_teaches_the_begin_token(chat: str) -> None:
    own = processor(chat)
    row = own.encode(one("<image>"))
    assert row.kinds[:SLOTS].tolist() == [TokenKind.IMAGE] * SLOTS
    assert row.tokens[SLOTS] == own.tokenizer.bos_token_id == row.labels[SLOTS]
    assert row.labels[SLOTS:].tolist() == row.tokens[SLOTS:].tolist()
    asked = own.encode(one("<image>"), generate=True)
    assert asked.tokens[SLOTS:].tolist() == [own.tokenizer.bos_token_id]


def test_a_prompt_and_its_begin_token_are_masked() -> None:
    own = processor("blip2")
    row = own.encode(one())
    learned = row.labels != IGNORE
    assert row.tokens[SLOTS] == own.tokenizer.bos_token_id
    assert words(own, row.tokens[SLOTS + 1 :][~learned[SLOTS + 1 :]]) == "what is it ?"
    assert words(own, row.tokens[learned]).strip(" ") == "a dog\n"
    assert own.ends == [own.tokenizer.eos_token_id, ids(own, "a\n")[-1]]


def test_vicuna_of_instructblip_begins_with_the_end_token() -> None:
    own = processor("instructblip")
    row = own.encode(one())
    end = own.tokenizer.eos_token_id
    assert row.tokens[SLOTS] == end and row.labels[SLOTS] == IGNORE
    assert row.tokens[-1] == end == row.labels[-1]
    assert own.tokenizer.bos_token_id not in row.tokens


def test_an_encoder_decoder_gets_prompt_and_answer_apart() -> None:
    own = processor("blip2_t5", seq2seq=True)
    row = own.encode(one())
    assert row.targets is not None and (row.labels == IGNORE).all()
    assert row.tokens[SLOTS:].tolist() == ids(own, "what is it ?</s>")
    assert row.targets.tolist() == ids(own, "a dog</s>")
    asked = own.encode(one(), generate=True)
    assert asked.targets is None and asked.tokens.tolist() == row.tokens.tolist()
    with pytest.raises(ValueError, match="found nothing to learn at the end"):
        own.encode(sample("<image>what is it ?", images=(RED,)))


@pytest.mark.parametrize("cut", ["left", "right"])
@pytest.mark.parametrize(("chat", "seq2seq"), [("instructblip", False), ("blip2_t5", True)])
def test_prompts_and_answers_have_limits_of_their_own(cut: Any, chat: str, seq2seq: bool) -> None:
    own = processor(chat, seq2seq=seq2seq, text_limits=TextLimits(prompt=4, answer=2, cut=cut))
    row = own.encode(one("<image>what is the colour of the cube ?", "a small red cube"))
    text = row.tokens[SLOTS:].tolist() if seq2seq else row.tokens[SLOTS:][row.labels[SLOTS:] == IGNORE].tolist()
    whole = ids(own, "what is the colour of the cube ?")
    kept = whole[-3:] if cut == "left" else whole[:3]
    assert text == ([*kept, own.tokenizer.eos_token_id] if seq2seq else [own.tokenizer.eos_token_id, *kept])
    answer = row.targets if seq2seq else row.labels[row.labels != IGNORE]
    assert answer is not None and answer.tolist() == ids(own, "a small red cube")[:2]
    assert own.truncated == 1


def test_the_q_former_reads_the_instruction_cut_on_the_left() -> None:
    reader = llama_tokenizer()
    own = processor("blip2", query_text=QueryText(tokenizer=reader, max_length=4))
    row = own.encode(one("<image>what is the colour of the cube ?"))
    assert row.query_text is not None
    whole = ids(own, "what is the colour of the cube ?")
    assert row.query_text.tolist() == [reader.bos_token_id, *whole[-3:]]
    batch = own.collate([row, own.encode(sample("it ?", "no"))])
    assert batch.query_text is not None and batch.query_text.shape == (2, 4)
    assert batch.query_text[1, -1] == IGNORE


def test_the_same_file_has_the_same_number() -> None:
    own = processor("blip2")
    rows = [own.encode(one()), own.encode(sample("<image>a", "b", images=(BLUE,))), own.encode(one())]
    first, second, third = (row.image_ids for row in rows)
    assert first == third
    batch = own.collate([*rows, own.encode(sample("a", "b"))])
    assert batch.image_ids is not None and batch.image_ids.tolist() == [*first, *second, *third]


@pytest.mark.parametrize(
    ("chat", "seq2seq"),
    [("blip2", False), ("vicuna_v1", False), ("cogvlm_vqa", False), ("cogvlm_base", False), ("blip2_t5", True)],
)
def test_answers_written_behind_prompts_are_those_of_training(chat: str, seq2seq: bool) -> None:
    own = processor(chat, seq2seq=seq2seq)
    samples = (one(), one("<image>how many are there ?", "two"))
    prompts = own.collate([own.encode(each, generate=True) for each in samples], padding="left")
    judged = own.with_answers(prompts, ["a dog", "two"])
    trained = own.collate([own.encode(each) for each in samples], padding="left")
    for row in range(2):
        assert real(judged, row) == real(trained, row)
    if seq2seq:
        assert judged.targets is not None and trained.targets is not None
        assert torch.equal(judged.targets, trained.targets)


def real(batch: Batch, row: int) -> list[list[int]]:
    kept = batch.segments[row] > 0
    columns = (batch.tokens, batch.labels, batch.kinds, batch.positions)
    return [column[row][kept].tolist() for column in columns]

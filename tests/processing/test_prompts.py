"""Rows of BLIP-2 and InstructBLIP: visual vectors first, prompts and answers with limits of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, Batch, Sample, TokenKind
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.limits import TextLimits
from lightning_mllm.processing.processor import Processor
from lightning_mllm.processing.query_text import QueryText
from tests.processing.test_processor import BLUE, RED, sample
from tests.processing.tokenizer import SPECIAL, llama_tokenizer

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
    assert own.stop_rule.tokens == [own.tokenizer.eos_token_id, ids(own, "a\n")[-1]]


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
    assert row.notes == ("cut",)


def around(before: str, after: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts tokens of its own around a text, as T5's and BERT's do."""
    tokenizer = llama_tokenizer()
    named = [(token, SPECIAL.index(token)) for token in (before, after) if token]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(filter(None, (before, "$A", after))), special_tokens=named
    )
    return tokenizer


LONG = " ".join(["red", "cube", "left", "blue"] * 80)


def test_vicuna_of_instructblip_learns_255_tokens_of_a_long_answer() -> None:
    """Released blip2_vicuna_instruct.py: text and end token, cut at 256 with the begin token, which is then dropped."""
    own = processor("instructblip", text_limits=TextLimits(prompt=128, answer=255))
    own.max_length = 512
    theirs = own.tokenizer(f"{LONG}</s>", truncation=True, max_length=256)["input_ids"]
    row = own.encode(one(answer=LONG))
    assert row.labels[row.labels != IGNORE].tolist() == theirs[1:] and len(theirs[1:]) == 255


def test_the_end_that_a_tokenizer_writes_itself_is_never_cut() -> None:
    """T5 learns 255 tokens and its end (released blip2_t5_instruct.py); BERT reads [CLS], 33 tokens and [SEP]."""
    t5 = around("", "</s>")
    own = Processor(
        t5,
        load_template("blip2_t5", t5),
        ImagePolicy(size=8, fit="squash"),
        SLOTS,
        512,
        seq2seq=True,
        text_limits=TextLimits(answer=256),
    )
    targets = own.encode(one(answer=LONG)).targets
    assert targets is not None and len(targets) == 256 and targets[-1] == t5.eos_token_id
    assert targets.tolist() == t5(LONG, truncation=True, max_length=256)["input_ids"]
    bert = around("<s>", "</s>")
    reader = Processor(bert, load_template("reader", bert), ImagePolicy(size=8, fit="squash"), 0, 35)
    caption = sample("", LONG, system="")
    row = reader.encode(replace(caption, turns=caption.turns[-1:]))
    assert row.tokens.tolist() == bert(LONG, truncation=True, max_length=35)["input_ids"]
    assert row.tokens[-1] == bert.eos_token_id == row.labels[-1] and len(row.tokens) == 35


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


def test_the_q_former_reads_special_tokens_of_a_question_as_text() -> None:
    reader = llama_tokenizer()
    asked = QueryText(tokenizer=reader, max_length=99)("what </s> is it ?")[0].tolist()
    assert asked[0] == reader.bos_token_id and reader.eos_token_id not in asked
    assert reader.decode(asked[1:]) == "what </s> is it ?"


def test_the_q_former_tokenizes_a_question_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives each sample a tensor and a list of its own; few enough questions are kept."""
    read, calls = QueryText(tokenizer=llama_tokenizer(), max_length=4), list[str]()
    made = QueryText._coded
    monkeypatch.setattr(QueryText, "_coded", lambda own, text: (calls.append(text), made(own, text))[1])
    first, told = read("what is it ?")
    first.zero_()
    told.clear()
    again, cut = read("what is it ?")
    assert calls == ["what is it ?"] and again.tolist() == made(read, "what is it ?")[0] and len(cut) == 1
    monkeypatch.setattr("lightning_mllm.processing.query_text.KNOWN", 2)
    for text in ("a", "b", "c"):
        read(text)
    assert len(read._known) <= 2 and calls[1:] == ["a", "b", "c"]


def test_the_q_former_counts_the_tokens_that_it_reads() -> None:
    """As text `</s>` is several tokens: what is cut is noted, and is what the tokenizer itself would cut."""
    reader, text = around("<s>", "</s>"), "it " + "</s> " * 5
    assert len(reader(text)["input_ids"]) <= 14  # pyright: ignore[reportArgumentType]
    own = processor("blip2", query_text=QueryText(tokenizer=reader, max_length=14))
    row = own.encode(one(f"<image>{text}"))
    reader.truncation_side = "left"
    expected = reader(text.strip(), truncation=True, max_length=14, split_special_tokens=True)["input_ids"]
    assert row.notes == ("cut",) and row.query_text is not None and row.query_text.tolist() == expected
    assert own.encode(one("<image>it ?")).notes == ()


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

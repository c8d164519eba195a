"""Pieces of an answer, joined, are the answer; no piece holds half a character."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models

from lightning_mllm.inference.pictures import question
from lightning_mllm.inference.streaming import AnswerStream, settled
from lightning_mllm.language.generation import AnswerEnd
from lightning_mllm.language.tokenizer import byte_tokenizer
from lightning_mllm.processing.stopping import StopText
from tests.inference.nets import FEW, NETS, model_of
from tests.inference.test_model import RED

END = AnswerEnd(tokens=(0,), pad=0)


@pytest.mark.parametrize("name", NETS)
def test_pieces_of_every_net_are_its_answer(name: str) -> None:
    """The bytes of a random net are hardly ever whole characters."""
    model = model_of(name)
    expected = model.answer(RED, "What is it?", FEW)
    stream = model.stream(RED, "What is it?", FEW)
    pieces = list(stream)
    assert "".join(pieces) == expected
    assert stream.finish_reason == ("length" if stream.new_tokens == FEW.max_new_tokens else "stop")
    row = model._row(*question(RED, "What is it?"))
    assert stream.prompt_tokens == len(row.tokens)
    stopped = expected[len(expected) // 2 :][:2] or "never"
    stream = model.stream(RED, "What is it?", FEW, stop=[stopped])
    assert "".join(stream) == expected.partition(stopped)[0]
    if expected:  # a random T5 says nothing
        assert stream.finish_reason == "stop" and stream.new_tokens < FEW.max_new_tokens


def written(tokens: Sequence[int], end: AnswerEnd) -> list[int]:
    """What a net does: every token is shown to the text that ends an answer."""
    for i, token in enumerate(tokens):
        if (end.text is not None and end.text(tokens[: i + 1])) or token in end.tokens:
            return list(tokens[: i + 1])
    return list(tokens)


def sentencepiece() -> Tokenizer:
    """LLaMA's way: a character without a token of its own is bytes, and a run of bytes is decoded as a whole."""
    words = ["</s>", "\u2581a", "\u2581b", "#", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (["a", "\u00e9\u2713", "b"], ["a", "\u00e9\u2713 b"]),
        (["a", "\u00e9\u2713"], ["a", "\u00e9\u2713"]),
        # Cut within a character: the whole run of bytes is no text.
        (["a", b"\xc3\xa9\xe2\x9c", "b"], ["a", "\ufffd\ufffd\ufffd\ufffd b"]),
        (["a", b"\xc3\xa9\xe2\x9c"], ["a", "\ufffd\ufffd\ufffd\ufffd"]),
        (["#", "#", "a"], ["#", "# a"]),
    ],
)
def test_bytes_of_a_character_wait_for_one_another(text: list[str | bytes], pieces: list[str]) -> None:
    tokenizer = sentencepiece()
    vocabulary = tokenizer.get_vocab()
    tokens: list[int] = []
    for part in text:
        if isinstance(part, str) and part in "ab#!":
            tokens.append(vocabulary[part if part in "#!" else "\u2581" + part])
        else:
            tokens += [vocabulary[f"<0x{byte:02X}>"] for byte in (part.encode() if isinstance(part, str) else part)]
    stream = AnswerStream(
        lambda end: written(tokens, end),
        END,
        lambda given: tokenizer.decode(list(given)).strip(),
        stop=["###"],
        limit=len(tokens),
        prompt_tokens=1,
        byte_tokens=frozenset(i for word, i in vocabulary.items() if word.startswith("<0x")),
    )
    found = list(stream)
    assert "".join(found) == tokenizer.decode(tokens).strip() == "".join(pieces)
    assert found[0] == pieces[0] if text[0] == "a" else True


def test_what_may_end_an_answer_is_held_back() -> None:
    assert settled("red \ufffd\ufffd", ()) == "red"
    assert settled("red ##", ("###", "\n\n")) == "red"
    assert settled("red ##a", ("###",)) == "red ##a"


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(token) for token in tokens if token).strip()


@pytest.mark.parametrize(
    ("stop", "whole", "reason"),
    [
        ((), "one, two", "length"),
        (("two",), "one, ", "stop"),
        (("x", ","), "one", "stop"),
        (("e, t", "n"), "o", "stop"),
    ],
)
def test_texts_end_an_answer_and_are_no_part_of_it(stop: tuple[str, ...], whole: str, reason: str) -> None:
    tokens = [ord(each) for each in "one, two"]
    stream = AnswerStream(lambda end: written(tokens, end), END, letters, stop=stop, limit=len(tokens), prompt_tokens=1)
    assert "".join(stream) == whole and stream.finish_reason == reason


def test_a_reader_who_leaves_stops_the_net() -> None:
    steps, read = [], threading.Event()

    def endless(end: AnswerEnd) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < 10_000:
            tokens.append(ord("a"))
            steps.append(1)
            if end.text is not None and end.text(tokens):
                break
            if len(tokens) == 2:
                read.wait()
        return tokens

    stream = AnswerStream(endless, END, letters, limit=10_000, prompt_tokens=1)
    assert next(stream) == "a"
    threading.Timer(0, read.set).start()
    stream.close()
    assert len(steps) < 10_000 and stream.finish_reason is None and list(stream) == []


def test_an_error_of_the_net_is_the_reader_s() -> None:
    def broken(end: AnswerEnd) -> list[int]:
        raise ValueError("found no net")

    with pytest.raises(ValueError, match="found no net"):
        list(AnswerStream(broken, END, letters, limit=1, prompt_tokens=1))


def test_a_template_s_own_end_is_held_back_and_ends_the_answer() -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer("red ### blue")["input_ids"][1:]
    end = AnswerEnd(tokens=(2,), pad=0, text=StopText(tokenizer, "###"))

    def decode(given: Sequence[int]) -> str:
        return str(tokenizer.decode(list(given))).split("###", 1)[0].strip()

    settings = {"end_text": "###", "limit": len(tokens), "prompt_tokens": 1}
    stream = AnswerStream(lambda end: written(tokens, end), end, decode, **settings)
    assert "".join(stream) == "red" and stream.new_tokens == len("red ###") and stream.finish_reason == "stop"

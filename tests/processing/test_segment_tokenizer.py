"""Tokens of segments, kept or not, are those of the whole text."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from lightning_mllm.processing import segment_tokenizer
from lightning_mllm.processing.segment_tokenizer import SegmentTokenizer, text_tokenizer
from lightning_mllm.processing.text_tokenizer import Piece, TextTokenizer
from tests.processing.tokenizer import byte_level_tokenizer, first_space_tokenizer, llama_tokenizer
from tests.walks import ROOT


def package_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "lightning_mllm/backbones/llama")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "package": package_tokenizer,
    "llama": lambda: llama_tokenizer("<|im_end|>"),
    "llama 2": lambda: llama_tokenizer("<|im_end|>", normalised=True),
    "first space": first_space_tokenizer,
    "bytes": byte_level_tokenizer,
}


def conversation(answer: str, question: str = "What is  red?") -> list[Piece]:
    return [
        Piece("<s>USER: ", False, special=True),
        *(Piece("see </s> ", False), Piece(f"{question} ASSISTANT:", False, special=True)),
        *(Piece(f" {answer}</s>", True, special=True), Piece("</s> é <|im_end|>", False, special=True)),
        *(Piece("dog", False), Piece(" many\n", True), Piece("<s></s>", True, special=True)),
    ]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_segments_have_the_tokens_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS[name]()
    whole, segments = TextTokenizer(tokenizer, begins=False), text_tokenizer(tokenizer, begins=False)
    assert isinstance(segments, SegmentTokenizer)
    for kept in (segment_tokenizer.KEPT, 5):
        monkeypatch.setattr(segment_tokenizer, "KEPT", kept)
        for answer in ("A dog.", "2", "", "A dog."):
            # The same text is learned here and not there.
            for pieces in (conversation(answer), [piece._replace(learn=False) for piece in conversation(answer)]):
                for run in (pieces, pieces[1:], pieces[2:], []):
                    assert segments(run) == whole(run)
    assert type(pickle.loads(pickle.dumps(segments))) is SegmentTokenizer


@pytest.mark.parametrize(
    "added",
    [
        AddedToken("<x>", special=True, rstrip=True),
        AddedToken("<x>", special=True, lstrip=True),
        AddedToken("<x>", special=True, single_word=True),
        AddedToken("<x>", special=True, normalized=True),
        AddedToken("dog<", special=False, normalized=False),
    ],
)
def test_where_neighbours_tell_the_tokens_the_whole_is_tokenised(added: AddedToken) -> None:
    tokenizer = llama_tokenizer()
    assert isinstance(text_tokenizer(tokenizer, begins=False), SegmentTokenizer)
    tokenizer.add_tokens([added])
    assert type(text_tokenizer(tokenizer, begins=False)) is TextTokenizer


def test_the_templates_of_the_package_begin_a_text_anew() -> None:
    assert type(text_tokenizer(llama_tokenizer(), begins=True)) is TextTokenizer

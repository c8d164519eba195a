"""Folders with `tokenizer.model`: which files count, and that what is saved gives the same tokens everywhere."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lightning_mllm.contracts import IMAGE_MARK
from lightning_mllm.interop.tokenizer import multimodal_tokenizer
from lightning_mllm.language import sentencepiece_folder
from lightning_mllm.language.tokenizer import folder_chat, language_tokenizer, load_tokenizer
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.text_tokenizer import Piece, TextTokenizer
from tests.language.sentencepieces import (
    BLANK,
    library,
    llama_model,
    old_tokenizer,
    texts,
    vicuna_folder,
)
from tests.processing.test_processor import processor, sample

VICUNA = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": True, "rstrip": False},
    "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": True, "rstrip": False},
    "unk_token": "<unk>",
    "pad_token": None,
    "model_max_length": 4096,
    "padding_side": "right",
}


def ids(tokenizer: PreTrainedTokenizerFast, text: str, **settings: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False, **settings)["input_ids"]  # pyright: ignore[reportReturnType]


def test_a_folder_of_tokenizer_model_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(vicuna_folder(tmp_path)))
    assert tokenizer("The dog")["input_ids"] == [1, *library(llama_model()).encode("The dog")]
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert named == ("<s>", "</s>", "<unk>", None) and len(tokenizer) == len(llama_model().pieces)
    # As transformers 4 where nothing is said: legacy.
    assert ids(tokenizer, "</s>The") == [2, *library(llama_model()).encode("The")]
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, expected at most 99"):
        language_tokenizer(Language(str(tmp_path), 99))


class Language:
    def __init__(self, model: str, vocab: int) -> None:
        self.model, self.vocab = model, vocab


def test_settings_beside_it_are_read(tmp_path: Path) -> None:
    rows = len(llama_model().pieces)
    folder = vicuna_folder(tmp_path, VICUNA | {"add_eos_token": True})
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]", "unk_token": {"content": "<s>"}}))
    (folder / "added_tokens.json").write_text(json.dumps({"<im_end>": rows + 1, "[PAD]": rows}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer("The dog")["input_ids"] == [1, *library(llama_model()).encode("The dog"), 2]
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "<im_end>"]) == [rows, rows + 1]
    assert (tokenizer.pad_token, tokenizer.unk_token, tokenizer.model_max_length) == ("[PAD]", "<s>", 4096)
    assert tokenizer.chat_template == "{{ messages }}" and set(tokenizer.all_special_tokens) == {"<s>", "</s>", "[PAD]"}
    listed = {str(rows): {"content": "<x>", "special": True, "lstrip": True}, "1": {"content": "<s>", "special": True}}
    vicuna_folder(folder, VICUNA | {"added_tokens_decoder": listed, "additional_special_tokens": ["<y>"]})
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.convert_tokens_to_ids(["<x>", "<y>"]) == [rows, rows + 1] and tokenizer.pad_token is None
    # A token may take the blanks beside it.
    assert tokenizer.tokenize("The  <x>The")[:2] == [f"{BLANK}The", "<x>"]
    whole = TextTokenizer(tokenizer)([Piece("The  <x>The", False, special=True)])[0]
    assert whole == ids(tokenizer, "The  <x>The") and whole != ids(tokenizer, "The  <x>The", split_special_tokens=True)
    vicuna_folder(folder, VICUNA | {"added_tokens_decoder": {str(rows + 7): {"content": "<x>"}}})
    with pytest.raises(
        ValueError, match=rf"tokenizer.model: found id {rows + 7} for the added token '<x>', expected {rows}"
    ):
        load_tokenizer(str(folder))
    for name in ("chat_template.json", "special_tokens_map.json", "tokenizer_config.json"):
        vicuna_folder(folder, VICUNA)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / name).write_text("[1]")
        with pytest.raises(ValueError, match=rf"{name}: found a list, expected settings by name"):
            load_tokenizer(str(folder))
        (folder / name).unlink()
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: found no JSON \(Expecting property name"):
        load_tokenizer(str(folder))


def converted(folder: Path) -> list[int]:
    """Writes a tokenizer.json of a conversion that knows no merges; its tokens of "The dog"."""
    backend: Any = load_tokenizer(str(folder)).backend_tokenizer
    vocabulary = {piece.piece: i for i, piece in enumerate(llama_model().pieces)}
    backend.model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    backend.save(str(folder / "tokenizer.json"))
    return backend.encode("The dog", add_special_tokens=False).ids


def test_tokenizer_model_counts_beside_a_conversion_of_llamas(tmp_path: Path) -> None:
    wrong = converted(vicuna_folder(tmp_path))
    right = library(llama_model()).encode("The dog")
    assert wrong != right
    for named in ("LlamaTokenizer", "LlamaTokenizerFast", None):
        vicuna_folder(tmp_path, VICUNA | {"tokenizer_class": named})
        assert ids(load_tokenizer(str(tmp_path)), "The dog") == right
    vicuna_folder(tmp_path, VICUNA | {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert ids(load_tokenizer(str(tmp_path)), "The dog") == wrong
    # tiktoken's file has the same name.
    vicuna_folder(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast"})
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")
    assert ids(load_tokenizer(str(tmp_path)), "The dog") == wrong


def test_added_tokens_of_a_conversion_are_kept(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(vicuna_folder(tmp_path)))
    tokenizer.add_tokens(["<im_start>"], special_tokens=True)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(str(tmp_path))
    assert again.tokenize("a<im_start>b") == tokenizer.tokenize("a<im_start>b")
    assert again.convert_tokens_to_ids("<im_start>") == len(llama_model().pieces)


@pytest.mark.parametrize("legacy", [True, False])
def test_what_is_saved_has_the_same_tokens(tmp_path: Path, legacy: bool) -> None:
    tokenizer = load_tokenizer(str(vicuna_folder(tmp_path / "vicuna", VICUNA | {"legacy": legacy})))
    tokenizer.save_pretrained(tmp_path / "saved")
    multimodal_tokenizer(tokenizer).save_pretrained(tmp_path / "exported")
    saved = load_tokenizer(str(tmp_path / "saved")), AutoTokenizer.from_pretrained(tmp_path / "saved")
    exported = load_tokenizer(str(tmp_path / "exported")), AutoTokenizer.from_pretrained(tmp_path / "exported")
    old = old_tokenizer(llama_model(), ("<unk>", "<s>", "</s>"), legacy)
    drawn = texts(200, seed=6)
    for text, other in pairwise(drawn):
        joined = f"{text}</s>{other}"
        expected = tokenizer.convert_tokens_to_ids(old(joined))
        assert all(ids(each, joined) == expected for each in (tokenizer, *saved, *exported))
    alone = library(llama_model())
    for text in ("\nWhat is it? ASSISTANT:", " The", "dog"):
        # Behind pictures as LLaVA encodes it: a text of its own.
        for each in exported:
            assert ids(each, f"USER: {IMAGE_MARK * 2}{text}")[-len(alone.encode(text)) :] == alone.encode(text)


@pytest.mark.parametrize("legacy", [True, False])
def test_text_in_turns_has_the_librarys_tokens(tmp_path: Path, legacy: bool) -> None:
    tokenizer = load_tokenizer(str(vicuna_folder(tmp_path, VICUNA | {"legacy": legacy})))
    text, alone = TextTokenizer(tokenizer), library(llama_model())
    for said in [*texts(1000, seed=7), "</s>a", "<s>", "a </s></s> b", "<unk> </s>"]:
        assert text([Piece(said, True)])[0] == alone.encode(said)
    old = old_tokenizer(llama_model(), ("<unk>", "<s>", "</s>"), legacy)
    whole = TextTokenizer(tokenizer, begins=False)
    for said in ("</s>The dog</s> a", "a </s>The", "<s></s>  The"):
        assert tokenizer.convert_ids_to_tokens(whole([Piece(said, True, special=True)])[0]) == old(said)


def test_a_template_beside_it_is_read(tmp_path: Path) -> None:
    folder = vicuna_folder(tmp_path, VICUNA)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert load_tokenizer(str(folder)).chat_template == "{{ messages }}"
    assert folder_chat(folder) == "tokenizer"


def test_a_hub_that_cannot_be_asked_is_no_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = vicuna_folder(tmp_path, VICUNA)

    def download(model: str, name: str) -> str:
        if name == "tokenizer.model":
            return str(folder / name)
        raise LocalEntryNotFoundError("the network is down")

    monkeypatch.setattr(sentencepiece_folder, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"found 'a/vicuna', expected .* \(the network is down\)"):
        load_tokenizer("a/vicuna")
    # Whoever says so has all there is.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ids(load_tokenizer("a/vicuna"), "The dog") == library(llama_model()).encode("The dog")


# Prompts as the originals have them


@pytest.mark.parametrize("legacy", [True, False])
def test_instructblips_prompt_is_a_text_behind_its_begin_token(tmp_path: Path, legacy: bool) -> None:
    """LAVIS, blip2_vicuna_instruct.py: the tokenizer puts </s> before the question, the answer is a text of its own."""
    used = processor("instructblip", load_tokenizer(str(vicuna_folder(tmp_path, VICUNA | {"legacy": legacy}))))
    alone = library(llama_model())
    row = used.encode(sample("What is the colour?", "the red cube"))
    assert row.tokens.tolist() == [2, *alone.encode("What is the colour?"), *alone.encode("the red cube"), 2]
    assert row.labels[row.labels >= 0].tolist() == [*alone.encode("the red cube"), 2]


@pytest.mark.parametrize("legacy", [True, False])
def test_vicunas_second_round_stands_behind_an_end_token(tmp_path: Path, legacy: bool) -> None:
    tokenizer = load_tokenizer(str(vicuna_folder(tmp_path, VICUNA | {"legacy": legacy})))
    used = processor("vicuna_v1", tokenizer)
    system = load_template("vicuna_v1", tokenizer).system  # pyright: ignore[reportAttributeAccessIssue]
    row = used.encode(sample("Who?", "A dog.", "  And  now?", "A  cat, \U0001f600"))
    written = f"{system} USER: Who? ASSISTANT: A dog.</s>USER:   And  now? ASSISTANT: A  cat, \U0001f600</s>"
    old = old_tokenizer(llama_model(), ("<unk>", "<s>", "</s>"), legacy)
    assert tokenizer.convert_ids_to_tokens(row.tokens.tolist()) == ["<s>", *old(written)]
    assert (f"{BLANK}USER:" in "".join(old(written)).replace(f"{BLANK}USER:", "", 1)) == legacy
    learned = tokenizer.convert_ids_to_tokens(row.labels[row.labels >= 0].tolist())
    # All four bytes of the character that is no piece are learned, and so is the blank before an answer.
    first, second = old("A dog.</s>"), old("A  cat, \U0001f600</s>")
    assert learned == [*first, *second] and "<0x9F>" in second

"""Tokens beside SentencePiece's own library."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from lightning_mllm.contracts import IMAGE_MARK
from lightning_mllm.language.sentencepiece_tokenizer import BLANK, pipeline, read_model
from tests.language.sentencepieces import library, llama_model, old_tokenizer, texts, trained

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def tokens(tokenizer: Any, text: str) -> list[str]:
    return tokenizer.encode(text, add_special_tokens=False).tokens


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("legacy", [True, False])
def test_ten_thousand_texts_have_the_librarys_tokens(legacy: bool) -> None:
    """Every second text holds special tokens, and is compared with the tokens of transformers 4."""
    model, rng = llama_model(), random.Random(2)
    own, old = (
        pipeline(model, [AddedToken("<pad>", special=True)], legacy=legacy),
        old_tokenizer(model, SPECIAL, legacy),
    )
    alone, written = library(model), texts(10_000, seed=1)
    between = ("", "", "</s>", "<s>", "<pad>", "</s> ", "</s></s>", "<unk>")
    wrong, special = [], 0
    for place, text in enumerate(written):
        if place % 2:
            text = "".join(rng.choice(written)[:25] + rng.choice(between) for _ in range(rng.randint(1, 4)))
        joined = any(each in text for each in SPECIAL)
        special += joined
        found = own.encode(text, add_special_tokens=False)
        if (found.tokens != old(text)) if joined else (found.ids != alone.encode(text)):
            wrong.append(text)
    assert not wrong, (len(wrong), wrong[:5])
    assert len(written) == 10_000 and special > 2500


def test_double_blanks_and_what_follows_a_special_token() -> None:
    model = llama_model()
    legacy, later = (pipeline(model, legacy=each) for each in (True, False))
    assert tokens(legacy, ".  The")[-2:] == [BLANK, f"{BLANK}The"]
    assert tokens(legacy, "</s>The") == ["</s>", f"{BLANK}The"]
    assert tokens(later, "</s>The") == ["</s>", *library(model, add_dummy_prefix=False).encode("The", out_type=str)]
    assert tokens(later, "The </s> The") == [f"{BLANK}The", BLANK, "</s>", f"{BLANK}The"]
    # LLaVA encodes each piece of text between pictures on its own.
    marked = pipeline(model, [AddedToken(IMAGE_MARK, special=True)], legacy=False)
    assert tokens(marked, f"The{IMAGE_MARK}{IMAGE_MARK}The</s>") == [
        f"{BLANK}The",
        *[IMAGE_MARK] * 2,
        f"{BLANK}The",
        "</s>",
    ]


@pytest.mark.parametrize("legacy", [True, False])
def test_offsets_are_those_of_the_text(legacy: bool) -> None:
    own = pipeline(llama_model(), legacy=legacy)
    for text in texts(500, seed=3):
        coded = own.encode(text, add_special_tokens=False)
        end, held, opened = 0, b"", True
        for token, (start, stop) in zip(coded.tokens, coded.offsets, strict=True):
            shown = text[start:stop]
            if byte := re.fullmatch("<0x(..)>", token):
                # Every byte of a character that is no piece stands for the whole character.
                held = held if start < end else b""
                held += bytes.fromhex(byte[1])
                assert len(shown) == 1 and shown.encode().startswith(held) and (start == end or len(held) > 1)
            else:
                # The blank that is put before a text stands for no character of it.
                assert start == end and token in (shown.replace(" ", BLANK), opened * BLANK + shown.replace(" ", BLANK))
            end, opened = stop, legacy and token in SPECIAL
        assert end == len(text)


@pytest.mark.parametrize("legacy", [True, False])
def test_tokens_are_decoded_as_the_library_decodes_them(legacy: bool) -> None:
    model = llama_model()
    own, alone = pipeline(model, legacy=legacy), library(model)
    for text in texts(500, seed=4):
        coded = alone.encode(text)
        assert own.decode(coded, skip_special_tokens=False) == alone.decode(coded)


def test_merges_stand_in_the_librarys_order() -> None:
    """Random models of a, b and blank: of pieces that overlap, the library merges the better one, or the left one."""
    rng, refused, compared = random.Random(1), 0, 0
    for made in range(150):
        model = type(llama_model())()
        model.pieces.add(piece="<unk>", type=2)
        parts = ["a", "b", BLANK]
        for place in range(rng.randint(2, 14)):
            piece = rng.choice(parts) + rng.choice(parts)
            if piece not in parts and len(piece) < 9:
                parts.append(piece)
                model.pieces.add(piece=piece, score=-float(place // 3 if made % 3 == 0 else place))
        for place, piece in enumerate(parts[:3]):
            model.pieces.add(piece=piece, score=-100.0 - place)
        model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, False
        model.normalizer_spec.name, model.normalizer_spec.remove_extra_whitespaces = "identity", False
        try:
            own = pipeline(model)
        except ValueError as error:
            assert "found one score for" in str(error) and made % 3 == 0
            refused += 1
            continue
        alone = library(model)
        for _ in range(40):
            drawn = "".join(rng.choice("aab ") for _ in range(rng.randint(1, 30)))
            text = drawn if rng.random() < 0.7 else rng.choice("ab ") * rng.randint(1, 40) + drawn[:1]
            assert ids(own, text) == alone.encode(text), ([piece.piece for piece in model.pieces], text)
            compared += 1
    assert 0 < refused < 50 and compared > 3000


def test_user_defined_symbols_stay_whole() -> None:
    model = trained(user_defined_symbols=["<loc>", "<location>", "==>"])
    alone = library(model)
    for legacy in (True, False):
        own = pipeline(model, legacy=legacy)
        for text in ("a <location> b<loc>c", "x==>  ==>y", "see <loc>", "<loc>.", "<location>e the <loc>", "  <loc> "):
            assert ids(own, text) == alone.encode(text)
        assert tokens(own, "the</s><loc>the") == [
            f"{BLANK}the",
            "</s>",
            *([BLANK] if legacy else []),
            "<loc>",
            *library(model, add_dummy_prefix=False).encode("the", out_type=str),
        ]


@pytest.mark.parametrize(("kind", "fallback"), [("bpe", True), ("bpe", False), ("unigram", False)])
@pytest.mark.parametrize("gathered", [True, False])
def test_models_that_normalise(kind: str, fallback: bool, gathered: bool) -> None:
    """As T5's: compatible forms are one character; spaces may be gathered, and taken off the ends."""
    model = trained(
        model_type=kind,
        vocab_size=330 if fallback else 100,
        byte_fallback=fallback,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=gathered,
        allow_whitespace_only_pieces=False,
    )
    own, alone = pipeline(model), library(model)
    for text in (
        "",
        "  ",
        " The  dog \n\t sits.  ",
        "\uff34\uff48\uff45 \ufb01sh \u2460",
        "what\u3000is\u00a0it",
        "the\r\ndog\r\n\r\n is",
        "\u4e2d\u6587 a",
    ):
        assert ids(own, text) == alone.encode(text), text


def test_unsupported_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found model_type 4, expected 1 \(unigram\) or 2 \(BPE\)"):
        pipeline(trained(model_type="char", vocab_size=340))
    with pytest.raises(ValueError, match="found a unigram model with byte_fallback, expected one without"):
        pipeline(trained(model_type="unigram", vocab_size=330))
    model = llama_model()
    model.trainer_spec.treat_whitespace_as_suffix = True
    with pytest.raises(ValueError, match="found treat_whitespace_as_suffix, expected spaces before words"):
        pipeline(model)
    model = llama_model()
    model.pieces.add(piece="odd", type=5)
    with pytest.raises(ValueError, match="found the unused piece 'odd', expected none"):
        pipeline(model)
    model = llama_model()
    for piece in ("bc", "cb"):
        model.pieces.add(piece=piece, score=0.5)
    with pytest.raises(ValueError, match="found one score for 'cb' and 'bc', expected scores that order the merges"):
        pipeline(model)


def test_files_of_other_formats_are_no_model(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    for content in (b"", b"IQ== 0\nIg== 1\nIw== 2\n", b"\xff\xfe\x00"):
        file.write_bytes(content)
        assert read_model(file) is None
    file.write_bytes(llama_model().SerializeToString())
    assert read_model(file).trainer_spec.byte_fallback

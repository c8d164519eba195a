from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.language.tokenizer import byte_tokenizer, load_tokenizer


@pytest.mark.parametrize("text", ["What is it?\n", "  two  spaces", "\u00e9\u4e2d\U0001f600", "<image> </s"])
def test_bytes_encode_any_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    coded = tokenizer(text, return_offsets_mapping=True)
    assert coded["input_ids"][0] == tokenizer.bos_token_id
    assert len(coded["input_ids"]) == 1 + len(text.encode())
    assert tokenizer.decode(coded["input_ids"], skip_special_tokens=True) == text
    assert coded["offset_mapping"][-1][1] == len(text)


def test_special_tokens_are_one_token() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 259
    assert tokenizer("a</s>")["input_ids"][-1] == tokenizer.eos_token_id == 2
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, 1)


def test_a_folder_is_read(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    text = "A red cube.</s>"
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == load_tokenizer("")(text)["input_ids"]


def test_tokenizers_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'nobody/nothing', expected a folder or a name on the hub"):
        load_tokenizer("nobody/nothing")
    with pytest.raises(ValueError, match="expected a folder or a name on the hub"):
        load_tokenizer(str(tmp_path))

"""What is shared in writing folders of transformers: tokenizers, image settings, added rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lightning_mllm.interop.cogvlm.folder import IMAGES
from lightning_mllm.interop.folder import FolderFacts, image_fit, image_processor, image_settings, pad_rows, padded_rows
from lightning_mllm.interop.tokenizer import multimodal_tokenizer
from lightning_mllm.processing.images import ImagePolicy


def byte_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.add_tokens(list(special), special_tokens=True)
    return made


def test_missing_tokens_are_added_to_a_copy(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    before = len(tokenizer)
    own = multimodal_tokenizer(tokenizer, "{{ 'x' }}")
    assert len(tokenizer) == before and tokenizer.pad_token is None
    assert (own.convert_tokens_to_ids("<image>"), own.pad_token_id) == (before, before + 1)
    own.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a<image> b")["input_ids"] == own("a<image> b")["input_ids"]
    assert again.pad_token == "<pad>" and again.chat_template == "{{ 'x' }}"
    assert len(multimodal_tokenizer(own, "")) == len(own)


def test_added_rows_never_win() -> None:
    # All logits are negative: a row of zeros would win.
    head, hidden = torch.rand(10, 4), -torch.rand(100, 4)
    padded = pad_rows(head, padded_rows(10, 12), like=3)
    assert padded.shape == (64, 4) and torch.equal(padded[:10], head)
    assert torch.equal((hidden @ padded.T).argmax(-1), (hidden @ head.T).argmax(-1))
    assert padded_rows(64, 64) == 64 and padded_rows(32000, 32002) == 32064 and padded_rows(70, 12) == 70


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_image_settings_fit_as_ours_and_come_back(tmp_path: Path, fit: Literal["crop", "pad", "squash"]) -> None:
    policy = ImagePolicy(size=32, fit=fit)
    tower = nn.Module()
    tower.register_buffer("mean", torch.tensor(policy.mean))
    tower.register_buffer("std", torch.full((3,), 0.25))
    processor: Any = image_processor(policy, tower)
    processor.save_pretrained(tmp_path)
    settings = image_settings(tmp_path)
    assert image_fit(settings) == fit and settings["image_mean"] == pytest.approx(policy.mean)
    gradient = np.indices((50, 90)).sum(0, dtype=np.uint8)[..., None].repeat(3, 2)
    image = Image.fromarray(gradient)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    levels = (theirs * 0.25 + torch.tensor(policy.mean).view(3, 1, 1)) * 255
    assert levels.shape == policy(image)[0].shape
    assert float((levels - policy(image)[0]).abs().mean()) < 1


def test_published_image_settings() -> None:
    blip = {"image_processor_type": "BlipImageProcessor", "do_resize": True, "size": {"height": 224, "width": 224}}
    assert image_fit(blip) == "squash"
    assert image_fit({"size": 224}) == image_fit({"size": {"shortest_edge": 224}}) == "crop"


def test_settings_of_a_folder_without_any(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no image settings"):
        image_settings(tmp_path)
    assert FolderFacts.read(tmp_path, 16, default=IMAGES).notes == {}

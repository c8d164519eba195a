"""Folders of transformers' BLIP-2 (`Blip2ForConditionalGeneration`)."""

from __future__ import annotations

from pathlib import Path

from transformers import Blip2Config

from lightning_mllm.interop.format import Format, HfFolder, TrainedNet
from lightning_mllm.interop.hf_blip import question_folder, read_questions
from lightning_mllm.interop.keys.eva import BLIP2_VISION_KEYS
from lightning_mllm.interop.keys.qformer import BLIP2_QFORMER_KEYS
from lightning_mllm.weights.keymap import KeyMap

KEYS = (
    BLIP2_VISION_KEYS.under("vision.", "vision_model.")
    + KeyMap([("ln_vision.{...}", "vision_model.post_layernorm.{...}")])
    + BLIP2_QFORMER_KEYS.under("qformer.", "")
    + KeyMap([("projection.linear.{...}", "language_projection.{...}"), ("language.{...}", "language_model.{...}")])
)
"""Ours <-> theirs."""


def write(net: TrainedNet) -> HfFolder:
    """A BLIP-2 as a folder; ValueError as `question_folder`."""
    return question_folder(net, FORMAT.hf_class, KEYS.to_theirs)


def read(folder: Path, chat: str | None) -> dict[str, object]:
    """As `read_questions`."""
    return read_questions(folder, Blip2Config.from_pretrained(folder), chat, reads=False)


FORMAT = Format(
    architecture="lightning_mllm.architectures.blip2.Blip2",
    keys=KEYS,
    hf_class="Blip2ForConditionalGeneration",
    holds=lambda processor: processor.query_text is None,
    write=write,
    read=read,
)

"""Folders of transformers' InstructBLIP (`InstructBlipForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import InstructBlipConfig

from lightning_mllm.interop.format import Format, HfFolder, TrainedNet
from lightning_mllm.interop.hf_blip import ImageEncoder, question_folder, read_questions
from lightning_mllm.interop.keys.eva import BLIP2_VISION_KEYS
from lightning_mllm.interop.keys.qformer import INSTRUCTBLIP_QFORMER_KEYS, with_last_text
from lightning_mllm.weights.keymap import KeyMap, Rule


def _last(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    """Whether block `n` of a folder's Q-Former is the last, whose text comes to nothing."""
    # transformers leaves defaults out of config.json.
    return int(fields["n"]) == config.get("qformer_config", {}).get("num_hidden_layers", 12) - 1


KEYS = (
    KeyMap(
        [
            Rule(ours=None, theirs=(f"qformer.encoder.layer.{{n}}.{part}.{{...}}",), when=_last)
            for part in ("intermediate", "output")
        ]
    )
    + BLIP2_VISION_KEYS.under("vision.", "vision_model.")
    + KeyMap([("ln_vision.{...}", "vision_model.post_layernorm.{...}")])
    + INSTRUCTBLIP_QFORMER_KEYS.under("qformer.", "")
    + KeyMap([("projection.linear.{...}", "language_projection.{...}"), ("language.{...}", "language_model.{...}")])
)
"""Ours <-> theirs."""


def write(net: TrainedNet) -> HfFolder:
    """A BLIP-2 whose Q-Former reads the instruction as a folder; ValueError as `question_folder`."""
    assert net.processor.query_text is not None
    layers = len(ImageEncoder.of(net).qformer.layers)
    return question_folder(
        net,
        FORMAT.hf_class,
        rename=lambda tensors: KEYS.to_theirs(with_last_text(tensors, layers)),
        reader=net.processor.query_text,
    )


def read(folder: Path, chat: str | None) -> dict[str, object]:
    """As `read_questions`."""
    return read_questions(folder, InstructBlipConfig.from_pretrained(folder), chat, reads=True)


FORMAT = Format(
    architecture="lightning_mllm.architectures.blip2.Blip2",
    keys=KEYS,
    hf_class="InstructBlipForConditionalGeneration",
    holds=lambda processor: processor.query_text is not None,
    write=write,
    read=read,
)

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

READER = "qformer_tokenizer"
"""Where a folder has the Q-Former's tokenizer."""


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
    """An InstructBLIP as a folder; ValueError as `question_folder`, and for a Q-Former that reads no instruction."""
    if net.processor.query_text is None:
        raise ValueError("instructed: found false, expected a Q-Former that reads the instruction, as transformers'")
    layers = len(ImageEncoder.of(net).qformer.layers)
    return question_folder(
        net,
        FORMAT.hf_class,
        rename=lambda tensors: KEYS.to_theirs(with_last_text(tensors, layers)),
        reader=net.processor.query_text.tokenizer,
    )


def read(folder: Path, chat: str | None) -> dict[str, object]:
    """As `read_questions`."""
    config = InstructBlipConfig.from_pretrained(folder)
    return {**read_questions(folder, config, chat, reads=True), "reader": str(folder / READER)}


FORMAT = Format(
    architecture="lightning_mllm.architectures.instructblip.InstructBlip",
    keys=KEYS,
    hf_class="InstructBlipForConditionalGeneration",
    write=write,
    read=read,
)

"""The authors' checkpoints of LLaVA: whole ones, projectors alone (`mm_projector.bin`), the LoRA script's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_mllm.interop.format import Format
from lightning_mllm.interop.keys.clip import CLIP_KEYS
from lightning_mllm.weights.keymap import KeyMap, Rule

TOWER = "model.vision_tower.vision_tower.vision_model."


def _behind(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    """Whether block `n` of the authors' tower, always a CLIP ViT-L of 24, lies behind the layer that is used."""
    return int(fields["n"]) > 24 + config.get("mm_vision_select_layer", -2)


KEYS = KeyMap(
    KeyMap((Rule(ours=None, theirs=(f"{TOWER}encoder.layers.{{n}}.{{...}}",), when=_behind),)).table
    + CLIP_KEYS.under("vision.", TOWER).table
    + KeyMap(
        (
            ("connector.linear_1.{...}", "model.mm_projector.0.{...}"),
            ("connector.linear_2.{...}", "model.mm_projector.2.{...}"),
            ("connector.linear.weight", "model.mm_projector.weight"),
            ("connector.linear.bias", "model.mm_projector.bias"),
            # A constant that files of old times hold.
            Rule(ours=None, theirs=("model.layers.{n}.self_attn.rotary_emb.inv_freq",)),
            ("language.model.{...}", "model.{...}"),
            ("language.lm_head.{...}", "lm_head.{...}"),
        )
    ).table,
    # The released LoRA script's `non_lora_trainables.bin`, and projectors saved without the model's own name.
    aliases=[
        ("base_model.model.model.mm_projector.{...}", "model.mm_projector.{...}"),
        ("mm_projector.{...}", "model.mm_projector.{...}"),
    ],
)
"""Ours <-> theirs."""

FORMAT = Format(architecture="lightning_mllm.architectures.llava.LLaVA", keys=KEYS)

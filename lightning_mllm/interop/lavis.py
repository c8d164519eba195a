"""LAVIS's checkpoints: BLIP-2's of both stages (`blip2_pretrained*.pth`) and InstructBLIP's (`instruct_blip_*.pth`)."""

from __future__ import annotations

from lightning_mllm.interop.format import Format
from lightning_mllm.interop.keys.blip2 import FIRST_STAGE_LAVIS_KEYS
from lightning_mllm.weights.keymap import KeyMap

KEYS = FIRST_STAGE_LAVIS_KEYS + KeyMap(
    [("projection.linear.{...}", "llm_proj.{...}"), ("language.{...}", "llm_model.{...}")],
    aliases=[(f"{name}_{part}.{{...}}", f"llm_{part}.{{...}}") for name in ("t5", "opt") for part in ("proj", "model")],
)
"""Ours <-> InstructBLIP's; BLIP-2's second stage calls projection and language model by the latter's name."""

BLIP2 = Format(architecture="lightning_mllm.architectures.blip2.Blip2", keys=KEYS)
REPRESENTATION = Format(
    architecture="lightning_mllm.architectures.blip2_representation.Blip2Representation", keys=FIRST_STAGE_LAVIS_KEYS
)

"""LAVIS's checkpoints: BLIP-2's of both stages (`blip2_pretrained*.pth`) and InstructBLIP's (`instruct_blip_*.pth`)."""

from __future__ import annotations

from lightning_mllm.interop.format import Format
from lightning_mllm.interop.keys.blip2 import FIRST_STAGE_LAVIS_KEYS
from lightning_mllm.weights.keymap import KeyMap

BLIP2_KEYS = FIRST_STAGE_LAVIS_KEYS + KeyMap(
    [("projection.linear.{...}", "opt_proj.{...}"), ("language.{...}", "opt_model.{...}")],
    aliases=[("t5_proj.{...}", "opt_proj.{...}"), ("t5_model.{...}", "opt_model.{...}")],
)
"""Ours <-> BLIP-2's second stage."""

INSTRUCTBLIP_KEYS = FIRST_STAGE_LAVIS_KEYS + KeyMap(
    [("projection.linear.{...}", "llm_proj.{...}"), ("language.{...}", "llm_model.{...}")],
    aliases=[(f"{name}_{part}.{{...}}", f"llm_{part}.{{...}}") for name in ("t5", "opt") for part in ("proj", "model")],
)
"""Ours <-> InstructBLIP's, and BLIP-2's."""

BLIP2 = Format(architecture="lightning_mllm.architectures.blip2.Blip2", keys=BLIP2_KEYS)
REPRESENTATION = Format(
    architecture="lightning_mllm.architectures.blip2_representation.Blip2Representation", keys=FIRST_STAGE_LAVIS_KEYS
)
INSTRUCTBLIP = Format(architecture="lightning_mllm.architectures.instructblip.InstructBlip", keys=INSTRUCTBLIP_KEYS)

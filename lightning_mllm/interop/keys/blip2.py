"""Names of BLIP-2 up to its language model: the first stage, of which a tower of SPHINX is made too."""

from __future__ import annotations

from lightning_mllm.interop.keys.eva import BLIP2_VISION_KEYS, EVA_KEYS
from lightning_mllm.interop.keys.qformer import (
    BLIP2_HEADS_KEYS,
    BLIP2_QFORMER_KEYS,
    LAVIS_HEADS_KEYS,
    LAVIS_QFORMER_KEYS,
)
from lightning_mllm.weights.keymap import KeyMap, Rule

FIRST_STAGE_HF_KEYS = (
    BLIP2_VISION_KEYS.under("vision.", "vision_model.")
    + KeyMap([("ln_vision.{...}", "vision_model.post_layernorm.{...}")])
    + BLIP2_HEADS_KEYS.under("heads.", "")
    + BLIP2_QFORMER_KEYS.under("qformer.", "")
)
"""Ours <-> files of transformers' `Blip2ForImageTextRetrieval`."""

FIRST_STAGE_LAVIS_KEYS = (
    EVA_KEYS.under("vision.", "visual_encoder.")
    + KeyMap([("ln_vision.{...}", "ln_vision.{...}")])
    + LAVIS_HEADS_KEYS.under("heads.", "")
    + LAVIS_QFORMER_KEYS.under("qformer.", "")
)
"""Ours <-> LAVIS's checkpoints of this stage (`blip2_pretrained.pth`)."""

TOWER_HF_KEYS = FIRST_STAGE_HF_KEYS + KeyMap(
    [Rule(ours=None, theirs=(f"language_{name}.{{...}}",)) for name in ("model", "projection")]
)
"""`QFormerVision` <- these files, and those of `Blip2ForConditionalGeneration`, whose language model is left out."""

TOWER_LAVIS_KEYS = FIRST_STAGE_LAVIS_KEYS + KeyMap(
    [Rule(ours=None, theirs=(f"{lm}_{name}.{{...}}",)) for lm in ("opt", "t5") for name in ("model", "proj")]
)
"""`QFormerVision` <- LAVIS's checkpoints of both stages."""

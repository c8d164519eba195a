"""The authors' checkpoints of SPHINX (LLaMA2-Accessory), whole or of one model-parallel part in all."""

from __future__ import annotations

from lightning_mllm.interop.format import Components, Format
from lightning_mllm.interop.keys.blip2 import TOWER_HF_KEYS
from lightning_mllm.interop.keys.dino import DINO_KEYS
from lightning_mllm.interop.keys.llama import HEAD, llama_keys
from lightning_mllm.language.source import LanguageSource
from lightning_mllm.weights.keymap import KeyMap, Rule

CLIP, CONVNEXT, DINO = "clip", "openclip_convnext_xxl", "dinov2_vitg14"
"""The authors' names of the second group's towers."""


def keys(components: Components) -> KeyMap:
    """Ours <-> theirs, which depends on the heads of the language model."""
    towers = (
        TOWER_HF_KEYS.under("groups.0.0.", "qformer.")
        + KeyMap(
            [
                Rule(ours=None, theirs=(f"{CLIP}.visual.proj",)),
                ("groups.1.0.{...}", f"{CLIP}.visual.{{...}}"),
                Rule(ours=None, theirs=(f"{CLIP}.{{...}}",)),  # its tower of texts
                ("groups.1.1.norm.{...}", f"{CONVNEXT}.head.norm.{{...}}"),
                *((f"groups.1.1.{each}.{{...}}", f"{CONVNEXT}.{each}.{{...}}") for each in ("stem", "stages")),
            ]
        )
        + DINO_KEYS.under("groups.1.2.", f"{DINO}.")
    )
    projections = [
        (f"connector.projections.{g}.{ours}.{{...}}", f"{name}_proj.{theirs}.{{...}}")
        for g, name in enumerate(("qformer", "visual"))
        for theirs, ours in enumerate(("linear", "norm"))
    ]
    ends = [("image_boundary.begin", "start_img"), ("image_boundary.end", "end_img")]
    rest = KeyMap([*projections, *ends]) + llama_keys(_head(components)).under("language.", "")
    return (towers.under("vision.", "") + rest).under("", "llma.")


def _head(components: Components) -> int:
    """Rows of a head of the language model; the published ones' where none is given."""
    language = components.get("language")
    if not isinstance(language, LanguageSource):
        return HEAD
    text = language.hf_config
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


FORMAT = Format(architecture="lightning_mllm.architectures.sphinx.Sphinx", keys=keys)

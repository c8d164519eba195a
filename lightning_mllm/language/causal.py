"""Causal language models: Llama, Vicuna, OPT, Qwen and their like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lightning_mllm.language.source import LanguageSource

RESCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings by which some models change what their head gives; the loss calls the head itself."""


@dataclass(frozen=True, kw_only=True)
class CausalLM(LanguageSource):
    """A causal language model of transformers.

    Raises:
        ValueError: On use, if there is no such model or it is not causal, or its weights lack or exceed its tensors.
    """

    kind: ClassVar[str] = "causal"
    types: ClassVar = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    auto: ClassVar = AutoModelForCausalLM

    @cached_property
    def hf_config(self) -> Any:
        """The configuration as transformers holds it."""
        config = super().hf_config
        for key in RESCALED:
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise ValueError(f"language: found {key} = {getattr(config, key)}, expected a model with plain logits")
        return config


TINY_LLAMA = CausalLM(
    config={
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 272,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)
"""Random values, no file, bytes as tokens: what the `tiny()` of an architecture talks with."""

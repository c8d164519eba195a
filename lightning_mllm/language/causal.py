"""Any causal language model of transformers as a part: its sizes, its names and its weights, never its code.

The module is the transformers model itself, so that parameter names are those of published checkpoints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lightning_mllm.language.lookback import look_back
from lightning_mllm.weights.files import TensorFiles, resource

RESCALED = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings by which some models change what their head gives; the loss calls the head itself."""

OLD_BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")
"""Tensors of old files that are computed today."""


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """A causal language model of transformers.

    Raises:
        ValueError: On use, if there is no such model or it is not causal, or its weights lack or exceed its tensors.
    """

    model: str = ""
    """A folder in the layout of transformers (may start with `package:`) or a name on the hub: configuration,
    tokenizer and weights."""
    weights: str | None = ""
    """None: fresh; "": those of `model`; else another folder or a file of tensors."""
    dtype: str | None = None
    """Of the parameters (`bfloat16`, for a frozen model that must be small); None takes the Trainer's precision."""
    config: dict[str, Any] | None = None
    """A configuration in place of the one in `model` (`{model_type: llama, hidden_size: 64, ...}`); the weights are
    then fresh unless they are named, and `model` may still name the tokenizer."""
    lookback: int = 0
    """Of a fresh model with rotary positions: so many heads of the first layer start by looking 1, 2, ... tokens back
    (`look_back`)."""

    def __post_init__(self) -> None:
        if not self.model and self.config is None:
            raise ValueError("language: found neither model nor config, expected one of them")
        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"language.dtype: found {self.dtype!r}, expected a dtype of torch such as 'bfloat16'")

    @cached_property
    def hf_config(self) -> Any:
        """The configuration as transformers holds it."""
        config = self._stated() if self.config is not None else self._read()
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(f"language: found a model of type {config.model_type!r}, expected a causal language model")
        for key in RESCALED:
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise ValueError(f"language: found {key} = {getattr(config, key)}, expected a model with plain logits")
        return config

    def _stated(self) -> Any:
        settings = dict(self.config or {})
        kind = settings.pop("model_type", None)
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            near = difflib.get_close_matches(str(kind), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=1, cutoff=0.0)[0]
            raise ValueError(f"language.config.model_type: found {kind!r}, expected a causal one such as {near!r}")
        known = AutoConfig.for_model(kind)
        for key in settings:
            if not hasattr(known, key):
                near = difflib.get_close_matches(key, known.to_dict(), n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"language.config: found {key!r}, expected a setting of {kind!r}; the nearest is {near!r}"
                )
        return AutoConfig.for_model(kind, **settings)

    def _read(self) -> Any:
        try:
            return AutoConfig.from_pretrained(str(resource(self.model)), trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"language.model: found {self.model!r}, expected a causal language model ({reason})"
            ) from None

    @property
    def width(self) -> int:
        """Of the embeddings."""
        return getattr(self.hf_config, "word_embed_proj_dim", None) or self.hf_config.hidden_size

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""
        return self.hf_config.vocab_size

    def build(self) -> PreTrainedModel:
        dtype = getattr(torch, self.dtype) if self.dtype else torch.get_default_dtype()
        # The model writes its dtype and attention into its config: two nets must not share one.
        config = type(self.hf_config).from_dict(self.hf_config.to_dict())
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
        if self.lookback:
            look_back(model, self.lookback)
        return model

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        if self.weights is None or (self.weights == "" and self.config is not None):
            return None
        source = self.weights or self.model
        return self._named(TensorFiles(_files(source)), source)

    def _named(self, files: TensorFiles, source: str) -> Iterator[tuple[str, Tensor]]:
        """The file's tensors under the model's names; the file may be of the model without its head."""
        with torch.device("meta"):
            empty = self.build()
        known, base = set(empty.state_dict()), empty.base_model_prefix
        for name in files:
            if name in known:
                yield name, files[name]
            elif f"{base}.{name}" in known:
                yield f"{base}.{name}", files[name]
            elif not name.endswith(OLD_BUFFERS):
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"{source}: tensor {name!r} is not in the model, the nearest of its names is {near!r}")

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        assert isinstance(module, PreTrainedModel)
        layers = set(module._no_split_modules or ())
        return [each for each in module.modules() if type(each).__name__ in layers]


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


def _files(source: str) -> Path:
    place = resource(source)
    if place.exists():
        return place
    try:
        folder = Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=["*.bin", "*.json"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"language: weights {source!r} are no folder and cannot be downloaded ({reason})") from None
    return folder

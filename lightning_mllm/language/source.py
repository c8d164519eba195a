"""Any language model of transformers as a part: its sizes, its names and its weights, never its code.

The module is the transformers model itself, so that parameter names are those of published checkpoints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lightning_mllm.language.previous_token_heads import add_previous_token_heads
from lightning_mllm.weights.files import TensorFiles, resource
from lightning_mllm.weights.hub import tensors_at
from lightning_mllm.weights.plain_files import check_folder, reason

MOST_LAYERS = 10_000
"""Of a configuration: more are a mistake, by which building would not end."""
OLD_BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")
"""Tensors of old files that are computed today."""


@dataclass(frozen=True, kw_only=True)
class LanguageSource:
    """What causal and encoder-decoder models have in common; a subclass says which models are its own.

    Raises:
        ValueError: On use, if there is no such model or it is of another kind, or its weights lack or exceed its
            tensors.
    """

    model: str = ""
    """A folder in the layout of transformers (may start with `package:`) or a name on the hub: configuration,
    tokenizer and weights."""
    weights: str | None = ""
    """None: fresh; "": those of `model`; else another folder or a file of tensors."""
    dtype: str | None = None
    """Of the parameters (`bfloat16`, for a frozen model that must be small); None follows `hardware.precision`."""
    config: dict[str, Any] | None = None
    """A configuration in place of the one in `model` (`{model_type: llama, hidden_size: 64, ...}`); the weights are
    then fresh unless they are named, and `model` may still name the tokenizer."""
    previous_token_heads: int = 0
    """Of a fresh model: so many heads of the first layer start by looking 1, 2, ... tokens back
    (previous_token_heads.py)."""

    kind: ClassVar[str]
    """What the models are called in errors: 'causal' or 'encoder-decoder'."""
    types: ClassVar[Mapping[str, Any]]
    """The model types of this kind."""
    auto: ClassVar[Any]
    """The class of transformers that builds them."""

    def __post_init__(self) -> None:
        if not self.model and self.config is None:
            raise ValueError("language: found neither model nor config, expected one of them")
        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"language.dtype: found {self.dtype!r}, expected a dtype of torch such as 'bfloat16'")

    @cached_property
    def hf_config(self) -> Any:
        """The configuration as transformers holds it."""
        config = self._stated() if self.config is not None else self._read()
        if config.model_type not in self.types:
            raise ValueError(
                f"language: found a model of type {config.model_type!r}, expected {self._article} language model"
            )
        return config

    @property
    def _article(self) -> str:
        return f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"

    def _stated(self) -> PreTrainedConfig:
        settings = dict(self.config or {})
        kind = settings.pop("model_type", None)
        if kind not in self.types:
            near = difflib.get_close_matches(str(kind), self.types, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"language.config.model_type: found {kind!r}, expected {self._article} one such as {near!r}"
            )
        known = AutoConfig.for_model(kind)
        for key in settings:
            check_setting("language.config", known, key)
        return AutoConfig.for_model(kind, **settings)

    def _read(self) -> PreTrainedConfig:
        folder = resource(self.model)
        check_folder(folder)
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # of files of strangers transformers raises every kind
            raise ValueError(
                f"language.model: found {self.model!r}, expected {self._article} language model ({reason(error)})"
            ) from None
        layers = getattr(config, "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise ValueError(f"language.model: {self.model}: found {layers} layers, expected at most {MOST_LAYERS}")
        return config

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
        try:
            model = self.auto.from_config(config, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
            name = self.model or "config"
            raise ValueError(f"language: {name}: found sizes that no model has ({reason(error)})") from error
        if self.previous_token_heads:
            add_previous_token_heads(model, self.previous_token_heads)
        return model

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        if self.weights is None or (self.weights == "" and self.config is not None):
            return None
        source = self.weights or self.model
        return self._named(TensorFiles(tensors_at(source, "language")), source)

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


def check_setting(where: str, config: PreTrainedConfig, key: str) -> None:
    """ValueError, naming the nearest one, if `key` is no setting of `config`."""
    if not hasattr(config, key):
        near = difflib.get_close_matches(key, config.to_dict(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{where}: found {key!r}, expected a setting of {config.model_type!r}; the nearest is {near!r}"
        )

"""Encoder-decoder language models: T5, FlanT5 and their like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from lightning_mllm.language.source import LanguageSource, check_setting
from lightning_mllm.weights.files import TensorFiles

HEAD, EMBEDDING = "lm_head.weight", "shared.weight"


@dataclass(frozen=True, kw_only=True)
class Seq2SeqLM(LanguageSource):
    """An encoder-decoder language model of transformers, with T5's names for embedding and head.

    The encoder reads `Batch.tokens`, the decoder learns `Batch.targets`.

    Raises:
        ValueError: On use, if there is no such model or it is no encoder-decoder, if an override is no setting of it,
            or if its weights lack or exceed its tensors.
    """

    overrides: dict[str, Any] | None = None
    """Settings forced on the configuration that was read; BLIP-2 computes FlanT5 with the exact gelu, `{dense_act_fn:
    gelu}`."""

    kind: ClassVar[str] = "encoder-decoder"
    types: ClassVar = {name: MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[name] for name in ("t5", "mt5")}
    auto: ClassVar = AutoModelForSeq2SeqLM

    @cached_property
    def hf_config(self) -> Any:
        """The configuration as transformers holds it, after the overrides."""
        config = super().hf_config
        for key, value in (self.overrides or {}).items():
            check_setting("language.overrides", config, key)
            setattr(config, key, value)
        # T5's decoder starts with the padding token; a configuration that is stated cannot say so itself.
        if getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = config.pad_token_id
        return config

    def build(self) -> PreTrainedModel:
        model = super().build()
        # FlanT5 (T5 1.1) has a head of its own, and transformers tells so by this setting alone.
        if not self.hf_config.scale_decoder_outputs:
            _untie(model)
        return model

    def _named(self, files: TensorFiles, source: str) -> Iterator[tuple[str, Tensor]]:
        yield from super()._named(files, source)
        # A file in which head and embedding are equal may hold one of them.
        for name, other in ((HEAD, EMBEDDING), (EMBEDDING, HEAD)):
            if name not in files and other in files:
                yield name, files[other]


def _untie(built: PreTrainedModel) -> None:
    """Gives the head values of its own; as random ones such that fresh logits have a variance of about 1."""
    model: Any = built  # of T5's attributes
    model._tied_weights_keys = {name: tied for name, tied in model._tied_weights_keys.items() if name != HEAD}
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    weight = torch.empty_like(model.lm_head.weight)
    nn.init.normal_(weight, std=model.config.d_model**-0.5)
    model.lm_head.weight = nn.Parameter(weight)


TINY_T5 = Seq2SeqLM(
    config={
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "tie_word_embeddings": False,
        "vocab_size": 272,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
)
"""Random values, no file, bytes as tokens: what the `tiny()` of an architecture talks with."""

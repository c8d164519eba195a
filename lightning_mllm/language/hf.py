"""The language model inside a folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.seq2seq import Seq2SeqLM


def language_spec(folder: Path, config: Any) -> CausalLM | Seq2SeqLM:
    """The spec, without weights, of a folder's language model; its tokenizer is the folder's.

    Args:
        folder: Of a multimodal model.
        config: Of the whole, with `text_config`.
    """
    text = config.text_config
    kind = Seq2SeqLM if text.is_encoder_decoder else CausalLM
    known = AutoConfig.for_model(text.model_type)
    # Published files also hold settings of generation, and of transformers of old times.
    settings = {key: value for key, value in text.to_diff_dict().items() if hasattr(known, key)}
    if getattr(text, "scale_decoder_outputs", None) is False:
        settings["tie_word_embeddings"] = False  # transformers 5 forgets it, and builds FlanT5's head as T5's
    return kind(
        model=str(folder),
        weights=None,
        dtype=str(config.dtype or "float32").removeprefix("torch."),
        config={**settings, "model_type": text.model_type},
    )

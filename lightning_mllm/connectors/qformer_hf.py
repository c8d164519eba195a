"""The sizes of a Q-Former as transformers states them, in `Blip2QFormerConfig` and in InstructBLIP's."""

from __future__ import annotations

from typing import Any, Literal

from lightning_mllm.connectors.qformer import QFormer, QFormerConnector
from lightning_mllm.connectors.qformer_layers import QFormerLayer


def qformer_settings(qformer: QFormer) -> dict[str, Any]:
    """The fields of a Q-Former's configuration; the number of queries is none of them."""
    layers = [layer for layer in qformer.layers if isinstance(layer, QFormerLayer)]
    crossing = [i for i, layer in enumerate(layers) if layer.cross_attention is not None]
    first = layers[0]
    assert first.cross_attention is not None
    words = {} if qformer.words is None else {"vocab_size": qformer.words.num_embeddings}
    places = {} if qformer.positions is None else {"max_position_embeddings": qformer.positions.num_embeddings}
    return {
        "hidden_size": qformer.queries.shape[-1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": first.self_attention.heads,
        "intermediate_size": first.query_feed_forward.up.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": qformer.dropout.p,
        "attention_probs_dropout_prob": qformer.dropout.p,
        "layer_norm_eps": qformer.norm.eps,
        "cross_attention_frequency": crossing[1] if len(crossing) > 1 else len(layers),
        "encoder_hidden_size": first.cross_attention.key.in_features,
        **words,
        **places,
    }


def qformer_spec(config: Any, queries: int, text: Literal["none", "instruction", "full"]) -> QFormerConnector:
    """The spec, without weights, of the Q-Former of a configuration; the inverse of `qformer_settings`.

    Raises:
        ValueError: A Q-Former with another activation, or with two rates of dropout.
    """
    if config.hidden_act != "gelu":
        raise ValueError(f"qformer_config.hidden_act: found {config.hidden_act!r}, expected 'gelu'")
    if (found := config.attention_probs_dropout_prob) != config.hidden_dropout_prob:
        raise ValueError(
            f"qformer_config.attention_probs_dropout_prob: found {found}, expected {config.hidden_dropout_prob}, the"
            " hidden_dropout_prob"
        )
    return QFormerConnector(
        queries=queries,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        feedforward=config.intermediate_size,
        cross_every=config.cross_attention_frequency,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings,
        text=text,
        dropout=config.hidden_dropout_prob,
        eps=config.layer_norm_eps,
    )

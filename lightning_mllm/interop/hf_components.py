"""Towers, Q-Formers and language models as configurations of transformers state them: out of a built one, and back
into a spec without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from open_clip.transformer import QuickGELU
from torch import nn
from transformers import (
    AutoConfig,
    Blip2Config,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlavaConfig,
)

from lightning_mllm.connectors.qformer import QFormer
from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.connectors.qformer_layers import QFormerLayer
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.seq2seq import Seq2SeqLM
from lightning_mllm.vision.encoder import VisionTower
from lightning_mllm.vision.eva import EPS, EvaBlock, EvaTower, EvaVision
from lightning_mllm.vision.source import Statistic

EVA_FIXED: dict[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": EPS, "qkv_bias": True}
"""What every EVA tower here has."""


def clip_config(tower: VisionTower, image_size: int) -> CLIPVisionConfig:
    """The configuration of a `CLIPVisionModel` with the blocks that `tower` has.

    Raises:
        ValueError: The tower's vectors are those behind its last norm, which is none of transformers' hidden states.
    """
    if tower.ln_post is not None:
        raise ValueError("vision.norm: found true, expected false: folders of transformers have no place for it")
    blocks: Any = tower.transformer.resblocks
    return CLIPVisionConfig(
        hidden_size=tower.class_embedding.shape[0],
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        image_size=image_size,
        patch_size=tower.conv1.kernel_size[0],
        hidden_act="quick_gelu" if isinstance(blocks[0].mlp.gelu, QuickGELU) else "gelu",
        layer_norm_eps=blocks[0].ln_1.eps,
    )


def open_clip_config(config: CLIPVisionConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """The configuration of an open_clip model whose image tower is `config`'s; its text tower is never built.

    Args:
        config: Of the tower, with all its blocks.
        mean: Of RGB in [0, 1], by channel.
        std: Likewise.

    Raises:
        ValueError: An activation that open_clip does not have.
    """
    if config.hidden_act not in ("gelu", "quick_gelu"):
        raise ValueError(f"vision_config.hidden_act: found {config.hidden_act!r}, expected gelu or quick_gelu")
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": config.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": config.image_size,
                "patch_size": config.patch_size,
                "layers": config.num_hidden_layers,
                "width": config.hidden_size,
                "head_width": config.hidden_size // config.num_attention_heads,
                "mlp_ratio": config.intermediate_size / config.hidden_size,
            },
            "text_cfg": {},
        },
        "preprocess_cfg": {"mean": mean, "std": std},
    }


def eva_settings(tower: nn.Module, image_size: int) -> dict[str, Any]:
    """The fields of a vision configuration whose tower is `tower`.

    Raises:
        ValueError: Another kind of tower, which transformers' BLIP-2 cannot hold.
    """
    if not isinstance(tower, EvaVision):
        raise ValueError(
            f"vision: found a {type(tower).__name__}, expected an EVA tower, all that transformers' BLIP-2 can hold"
        )
    block = tower.blocks[0]
    assert isinstance(block, EvaBlock)
    return {
        "hidden_size": tower.cls_token.shape[-1],
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(tower.blocks),
        "num_attention_heads": block.attn.heads,
        "image_size": image_size,
        "patch_size": tower.patch_embed.kernel_size[0],
        **EVA_FIXED,
    }


def eva_tower(config: Blip2VisionConfig | InstructBlipVisionConfig, mean: Statistic, std: Statistic) -> EvaTower:
    """The spec, without weights, of the tower of a vision configuration; the inverse of `eva_settings`.

    Raises:
        ValueError: A tower that is none of EVA's.
    """
    for key, expected in EVA_FIXED.items():
        if (found := getattr(config, key)) != expected:
            raise ValueError(f"vision_config.{key}: found {found!r}, expected {expected!r}")
    sizes: Any = config  # each may be one number or two
    return EvaTower(
        weights=None,
        depth=config.num_hidden_layers,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        feedforward=config.intermediate_size,
        mean=mean,
        std=std,
    )


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


def qformer_spec(
    config: Blip2QFormerConfig | InstructBlipQFormerConfig,
    queries: int,
    text: Literal["none", "instruction", "full"],
) -> QFormerConnector:
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


def language_spec(folder: Path, config: Blip2Config | InstructBlipConfig | LlavaConfig) -> CausalLM | Seq2SeqLM:
    """The spec, without weights, of a folder's language model; its tokenizer is the folder's.

    Args:
        folder: Of a multimodal model.
        config: Of the whole, with `text_config`.
    """
    text: Any = config.text_config
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

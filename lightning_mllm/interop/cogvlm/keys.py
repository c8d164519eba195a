"""Names of a CogVLM's tensors here and in the public checkpoints (`CogVLMForCausalLM`).

A public checkpoint has an expert for every part of every block, and one matrix for an expert's QKV. What has no expert
here serves all tokens, and is written there for both of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.interop.keys.eva2 import COGVLM_VISION_KEYS
from lightning_mllm.weights.keymap import Condition, KeyMap, Rule, RuleLike

EXPERTS = ("language", "vision")
OURS, THEIRS = "language.model.layers.{n}", "model.layers.{n}"
FUSED, DENSE = f"{THEIRS}.self_attn.{{expert}}_expert_query_key_value", f"{THEIRS}.self_attn.{{expert}}_expert_dense"


def _split(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Query, key and value of a fused projection: as many rows of queries as it has columns, the rest in halves."""
    fused = tensors[0]
    queries = fused.shape[1] if fused.ndim == 2 else len(fused) // 3
    shared = (len(fused) - queries) // 2
    return fused.split([queries, shared, shared])


def _twice(join: Callable[[Sequence[Tensor]], Tensor]) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """One value for both experts: what serves all tokens here."""
    return lambda tensors: [join(tensors)] * 2


def _lacks(part: str) -> Condition:
    """Whether, in a folder of ours, block `n` has no expert for `part`."""

    def holds(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
        experts = config.get("visual_expert") or {}
        return bool(experts) and (int(fields["n"]) % experts["every"] != 0 or part not in experts["parts"])

    return holds


def _names(template: str) -> tuple[str, ...]:
    """Of the language expert and of the vision expert."""
    return tuple(template.replace("{expert}", expert) for expert in EXPERTS)


def _block() -> Iterator[RuleLike]:
    for kind in ("weight", "bias"):
        qkv = [f"{OURS}.self_attn.{each}_proj" for each in "qkv"]
        dense, fused = f"{OURS}.self_attn.o_proj", _names(f"{FUSED}.{kind}")
        yield Rule(
            ours=tuple(f"{each}.{kind}" for each in qkv),
            theirs=fused,
            there=_twice(lambda tensors: torch.cat(list(tensors))),
            back=_split,
            when=_lacks("qkv"),
        )
        for expert, theirs in zip(EXPERTS, fused, strict=True):
            yield Rule(
                ours=tuple(f"{each}.{expert}.{kind}" for each in qkv),
                theirs=(theirs,),
                there=lambda tensors: [torch.cat(list(tensors))],
                back=_split,
            )
        pairs = [("output", dense, f"{DENSE}.{kind}", kind)] + [
            ("ffn", f"{OURS}.mlp", f"{THEIRS}.mlp.{{expert}}_mlp.{each}.{kind}", f"{each}.{kind}")
            for each in ("gate_proj", "up_proj", "down_proj")
        ]
        for part, ours, template, tail in pairs:
            both = _names(template)
            yield Rule(
                ours=f"{ours}.{tail}",
                theirs=both,
                there=_twice(lambda tensors: tensors[0]),
                back=lambda tensors: tensors[:1],
                when=_lacks(part),
            )
            yield from ((f"{ours}.{expert}.{tail}", name) for expert, name in zip(EXPERTS, both, strict=True))
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{OURS}.{norm}.{{...}}", f"{THEIRS}.{norm}.{{...}}"


_LANGUAGE = KeyMap(
    [
        Rule(ours=None, theirs=(f"{THEIRS}.self_attn.rotary_emb.inv_freq",)),  # a constant
        *_block(),
        *((f"language.model.{name}.{{...}}", f"model.{name}.{{...}}") for name in ("embed_tokens", "norm")),
        ("language.lm_head.{...}", "lm_head.{...}"),
        ("connector.{...}", "model.vision.linear_proj.{...}"),
        ("image_boundary.begin", "model.vision.boi"),
        ("image_boundary.end", "model.vision.eoi"),
    ]
)

HERE, THERE = "transformer.resblocks.{n}", "transformer.layers.{n}"

INPUT = "input"
"""`vision_config.norms` of a tower whose norms stand before its branches, as in CLIP."""


def _clip(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    return config.get("vision_config", {}).get("norms") == INPUT


_CLIP_KEYS = KeyMap(
    [
        ("class_embedding", "patch_embedding.cls_embedding", (lambda ours: ours[None], lambda theirs: theirs[0])),
        ("positional_embedding", "patch_embedding.position_embedding.weight"),
        ("conv1.{...}", "patch_embedding.proj.{...}"),
        ("ln_pre.{...}", "patch_embedding.norm.{...}"),
        (f"{HERE}.ln_1.{{...}}", f"{THERE}.input_layernorm.{{...}}"),
        *((f"{HERE}.attn.in_proj_{kind}", f"{THERE}.attention.query_key_value.{kind}") for kind in ("weight", "bias")),
        (f"{HERE}.attn.out_proj.{{...}}", f"{THERE}.attention.dense.{{...}}"),
        (f"{HERE}.ln_2.{{...}}", f"{THERE}.post_attention_layernorm.{{...}}"),
        (f"{HERE}.mlp.c_fc.{{...}}", f"{THERE}.mlp.fc1.{{...}}"),
        (f"{HERE}.mlp.c_proj.{{...}}", f"{THERE}.mlp.fc2.{{...}}"),
    ]
)

COGVLM_TOWER_KEYS = (
    KeyMap(
        [
            Rule(ours=None, theirs=("output_position_embedding",)),
            *(replace(rule, when=_clip) for rule in _CLIP_KEYS.table),
        ]
    )
    + COGVLM_VISION_KEYS
)
"""`VisionTower` or `Eva2Vision` <-> folders of CogVLM, where these names stand below `model.vision.`."""

KEYS = COGVLM_TOWER_KEYS.under("vision.", "model.vision.") + _LANGUAGE
"""Ours <-> the public checkpoints and the folders that are written here."""

"""Low-rank adapters of a language model (Hu et al., arXiv 2106.09685): W x + alpha / r * B A x, with W frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import PreTrainedModel

ADAPTER = "default"
"""What peft calls an adapter that has no other name; part of the tensors' names."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Sizes of the adapters; the defaults are those of LLaVA-1.5's released `finetune_lora.sh`.

    Raises:
        ValueError: A number is out of range.
    """

    r: int = 128
    """Rank."""
    alpha: int = 256
    dropout: float = 0.05
    """Of what enters an adapter."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"lora.r: found {self.r}, expected at least 1")
        if self.alpha < 1:
            raise ValueError(f"lora.alpha: found {self.alpha}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout: found {self.dropout}, expected a number from 0 up to, not including, 1")

    @property
    def scale(self) -> float:
        """By which B A is multiplied."""
        return self.alpha / self.r


def add_lora(model: PreTrainedModel, lora: Lora) -> None:
    """Puts an adapter on every linear layer of `model` but its head, in place; all else is frozen."""
    head = model.get_output_embeddings()
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]
    assert names, "a language model without linear layers"
    settings = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)
    inject_adapter_in_model(settings, model, adapter_name=ADAPTER)


def merge_lora(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state of the same model without adapters: each folded into its weight, under the plain name.

    Args:
        state: Tensors of a model with adapters; those of adapted layers stand under `...base_layer...`.
        scale: alpha / r.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        layer, base, kind = name.rpartition(".base_layer.")
        down = state.get(f"{layer}.lora_A.{ADAPTER}.weight") if base and kind == "weight" else None
        if down is None:
            merged[name.replace(".base_layer.", ".")] = tensor
            continue
        up = state[f"{layer}.lora_B.{ADAPTER}.weight"]
        merged[f"{layer}.weight"] = (tensor.float() + scale * (up.float() @ down.float())).to(tensor.dtype)
    return merged


def fresh_lora(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """The first value of an adapter's tensor: A as a linear layer's weight, B zero, so that nothing changes yet."""
    tensor = torch.zeros(shape)
    if ".lora_A." in name:
        nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
    return tensor

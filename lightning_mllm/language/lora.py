"""Low-rank adapters of linear layers (Hu et al., arXiv 2106.09685): W x + alpha / r * B A x, with W frozen."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

ADAPTER = "default"
"""What peft calls an adapter that has no other name; part of the tensors' names."""


Bias = Literal["none", "lora_only"]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapters; the defaults are those of LLaVA-1.5's released `scripts/v1_5/finetune_lora.sh`.

    Raises:
        ValueError: A number is out of range, or an unknown `bias`.
    """

    r: int = 128
    """Rank."""
    alpha: int = 256
    dropout: float = 0.05
    """Of what enters an adapter."""
    bias: Bias = "none"
    """As peft calls them: `lora_only` trains the biases of the adapted layers too."""
    targets: tuple[str, ...] = ()
    """The layers: glob patterns over modules of the net (`language.*.self_attn.*`), or last names of modules of the
    language model (`q_proj`); each names some linear layer. None: those that the stage names, else every linear layer
    of the language model but its head."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"lora.r: found {self.r}, expected at least 1")
        if self.alpha < 1:
            raise ValueError(f"lora.alpha: found {self.alpha}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout: found {self.dropout}, expected a number from 0 up to, not including, 1")
        if self.bias not in get_args(Bias):
            raise ValueError(f"lora.bias: found {self.bias!r}, expected one of {', '.join(get_args(Bias))}")

    @property
    def scale(self) -> float:
        """By which B A is multiplied."""
        return self.alpha / self.r


def adapted_layers(parts: Mapping[str, nn.Module], targets: Sequence[str]) -> dict[str, list[str]]:
    """Part -> the names in it of the layers that have an adapter.

    Args:
        parts: The net's parts; the language model is called `language`.
        targets: As `Lora.targets`.

    Raises:
        ValueError: A target names no linear layer.
    """
    layers = {f"{part}.{name}": (part, name) for part, module in parts.items() for name in linear_layers(module)}
    if not targets:
        return {"language": [name for part, name in layers.values() if part == "language"]}
    chosen: dict[str, None] = {}
    for target in targets:
        found = [full for full in layers if _is(target, full)]
        if not found:
            known = {full.rpartition(".")[2] for full in layers} if "." not in target else set(layers)
            near = ", ".join(map(repr, difflib.get_close_matches(target, sorted(known), n=3, cutoff=0.0)))
            raise ValueError(f"stage.lora.targets: {target!r} names no linear layer, expected something like {near}")
        chosen.update(dict.fromkeys(found))
    grouped: dict[str, list[str]] = {}
    for full in chosen:
        part, name = layers[full]
        grouped.setdefault(part, []).append(name)
    return grouped


def _is(target: str, full: str) -> bool:
    if "." in target or set(target) & set("*?["):
        return fnmatchcase(full, target)
    return full.startswith("language.") and full.rpartition(".")[2] == target


def linear_layers(module: nn.Module) -> Iterator[str]:
    """Names of the linear layers of `module` that are called as such: no head, and none inside torch's attention."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None  # pyright: ignore
    inside = {id(each) for m in module.modules() if isinstance(m, nn.MultiheadAttention) for each in m.modules()}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layer is not head and id(layer) not in inside:
            yield name


def add_lora(model: nn.Module, lora: Lora, names: Sequence[str] | None = None) -> None:
    """Puts an adapter on linear layers of `model`, in place; all else is frozen.

    Args:
        model: A part of a net.
        lora: Sizes; its targets are not read here.
        names: Of the layers; None is every linear layer but the head.
    """
    names = list(linear_layers(model)) if names is None else list(names)
    assert names, "a model without linear layers"
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


@torch.no_grad()
def fold_lora(model: nn.Module, scale: float, dtypes: Mapping[str, torch.dtype]) -> None:
    """Folds adapters into the weights that they adapt, in place: rounded as files hold them, and the adapters zero.

    Args:
        model: With adapters.
        scale: alpha / r.
        dtypes: Of each tensor in files, under its name in `model`.
    """
    state = model.state_dict()
    for name, tensor in merge_lora(state, scale).items():
        layer, _, kind = name.rpartition(".")
        base = f"{layer}.base_layer.{kind}"
        if kind == "weight" and base in state:
            state[base].copy_(tensor.to(dtypes[base]))
            state[f"{layer}.lora_B.{ADAPTER}.weight"].zero_()


def fresh_lora(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """The first value of an adapter's tensor: A as a linear layer's weight, B zero, so that nothing changes yet."""
    tensor = torch.zeros(shape)
    if ".lora_A." in name:
        nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
    return tensor

"""A language model with visual experts as a component: its settings and where its tensors come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.visual_expert import PARTS, Part, Routed, add_visual_experts


@dataclass(frozen=True, kw_only=True)
class VisualExpertLM(CausalLM):
    """A causal language model with visual experts; the defaults are the paper's, the rest its ablations.

    Names of tensors: `...q_proj.language.weight` and `...q_proj.vision.weight`, `...mlp.vision.gate_proj.weight`.

    Raises:
        ValueError: A setting is out of range; on use, as `CausalLM` and `add_visual_experts`.
    """

    every: int = 1
    """Every so many blocks, from the first, one has an expert; the paper also tried 4."""
    parts: tuple[Part, ...] = get_args(Part)
    """What an expert has; the paper also tried `[ffn]`."""
    start: Literal["copy", "fresh"] = "copy"
    """Of an expert: the language model's weights, or random ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"language.every: found {self.every}, expected at least 1")
        if not self.parts or len(set(self.parts)) != len(self.parts) or not set(self.parts) <= set(PARTS):
            raise ValueError(f"language.parts: found {list(self.parts)}, expected some of {list(PARTS)}, each once")
        if self.start not in ("copy", "fresh"):
            raise ValueError(f"language.start: found {self.start!r}, expected copy or fresh")

    @property
    def plain(self) -> CausalLM:
        """The same language model without experts."""
        return CausalLM(**{each.name: getattr(self, each.name) for each in fields(CausalLM)})

    @property
    def fresh(self) -> Sequence[str]:
        """Tensors that keep the random values of `build()`."""
        return ("*.vision.*",) if self.start == "fresh" else ()

    def build(self) -> PreTrainedModel:
        model = super().build()
        add_visual_experts(model, self.every, self.parts, self.start)
        return model

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        """The language model's tensors, and once more as those of experts that start as copies."""
        found = self.plain.pretrained()
        return None if found is None else self._routed(found)

    def _routed(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        with torch.device("meta"):
            empty = self.build()
        routed = [f"{name}." for name, module in empty.named_modules() if isinstance(module, Routed)]
        for name, tensor in tensors:
            at = next((each for each in routed if name.startswith(each)), None)
            if at is None:
                yield name, tensor
                continue
            yield f"{at}language.{name.removeprefix(at)}", tensor
            if self.start == "copy":
                yield f"{at}vision.{name.removeprefix(at)}", tensor

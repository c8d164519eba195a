"""Small language models with visual experts, and the routing of papers to compare them with."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.contracts import TokenKind
from lightning_mllm.language.lm_loss import lm_hidden_states
from lightning_mllm.language.visual_expert import Routed, vision_mask
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.processing.shared_positions import shared_positions
from tests.language.batches import batch_of
from tests.language.models import LLAMA, perturbed

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": None},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 16},
}

_LETTERS = {"T": TokenKind.TEXT, "B": TokenKind.IMAGE_BEGIN, "I": TokenKind.IMAGE, "E": TokenKind.IMAGE_END}


def kinds_of(*rows: str) -> Tensor:
    """`TBIIETT` as kinds u8[B, T]; `.` is padding."""
    return torch.tensor([[int(_LETTERS.get(each, TokenKind.TEXT)) for each in row] for row in rows], dtype=torch.uint8)


def segments_of(*rows: str) -> Tensor:
    """One segment a row, `.` being padding; a `|` before a token starts another."""
    found = []
    for row in rows:
        segment, numbers = 1, []
        for each in row:
            segment += each == "|"
            if each != "|":
                numbers.append(0 if each == "." else segment)
        found.append(numbers)
    return torch.tensor(found)


def small(kind: str = "llama", **settings: Any) -> PreTrainedModel:
    """Experts differ from what they were copied from."""
    return perturbed(VisualExpertLM(config=CONFIGS[kind], **settings).build())


def plain_of(model: PreTrainedModel, config: dict[str, Any]) -> PreTrainedModel:
    """The language model of `model`, without its experts."""
    plain = VisualExpertLM(config=config).plain.build().eval()
    state = {n.replace(".language.", "."): t for n, t in model.state_dict().items() if ".vision." not in n}
    plain.load_state_dict(state, strict=True)
    return plain


def copied(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with experts that are copies again."""
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, Routed):
            module.vision.load_state_dict(module.language.state_dict())
    return model


def run(model: PreTrainedModel, embeds: Tensor, *rows: str) -> Tensor:
    """Hidden states of rows as in `segments_of`."""
    kinds, segments = kinds_of(*(row.replace("|", "") for row in rows)), segments_of(*rows)
    return lm_hidden_states(model, embeds, batch_of(segments, shared_positions(kinds, segments), kinds))


class Boolean(nn.Module):
    """A `Routed` as papers write it: tokens picked by a mask, run, and written back."""

    def __init__(self, routed: Routed, mask: Tensor) -> None:
        super().__init__()
        self.language, self.vision, self.mask = routed.language, routed.vision, mask

    def forward(self, x: Tensor) -> Tensor:
        words, images = self.language(x[~self.mask]), self.vision(x[self.mask])
        written = x.new_empty(*x.shape[:-1], words.shape[-1])
        written[~self.mask], written[self.mask] = words, images
        return written


def boolean(model: PreTrainedModel, kinds: Tensor) -> PreTrainedModel:
    """A copy of `model` that routes tokens of these kinds by a mask."""
    model = deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Routed):
            model.set_submodule(name, Boolean(module, vision_mask(kinds)))
    return model

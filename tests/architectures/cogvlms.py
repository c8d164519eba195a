"""CogVLM's nets in small, and the plain language model inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.architectures.cogvlm import TINY, CogVLM
from lightning_mllm.contracts import Batch, TokenKind

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


def built(**settings: Any) -> CogVLM:
    module = CogVLM.tiny(**settings)
    module.configure_model()
    return module.eval()


def spread(module: CogVLM, inside: str = "", seed: int = 0) -> CogVLM:
    """The net with noise on every parameter that has `inside` in its name: experts are no copies any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.net.named_parameters():
            if inside in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def plain(module: CogVLM) -> PreTrainedModel:
    """The language model of a net, without experts."""
    model = TINY["language"].plain.build().eval()
    state = module.net.language.state_dict()
    model.load_state_dict(
        {name.replace(".language.", "."): each for name, each in state.items() if ".vision." not in name}
    )
    return model


def positions(batch: Batch) -> Tensor:
    """What the paper says, one token after another: the vectors of an image share the place of the first."""
    rows = []
    for kinds, segments in zip(batch.kinds.tolist(), batch.segments.tolist(), strict=True):
        row: list[int] = []
        place, before = -1, (-1, 0)
        for kind, segment in zip(kinds, segments, strict=True):
            if segment != before[1]:
                place = 0
            elif not kind == before[0] == TokenKind.IMAGE:
                place += 1
            before = (kind, segment)
            row.append(place if segment else 0)
        rows.append(row)
    return torch.tensor(rows)

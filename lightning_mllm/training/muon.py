"""Muon for the matrices of a net, AdamW for the rest: two optimizers of torch as one.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) turns the momentum of a matrix into the nearest
(semi-)orthogonal one, by five steps of Newton-Schulz in bfloat16, so that all directions of the matrix learn alike. Its
update is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, sec. 2.2: 0.2 sqrt(max(rows, columns))), so
that one learning rate and one weight decay hold for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

MATRIX = "matrix"
"""The setting of a group that says which of both optimizers it has."""


def hidden_matrices(net: nn.Module) -> set[str]:
    """Names of what Muon is meant for: weights of linear layers, but for a language model's head."""
    models = [each for each in net.modules() if isinstance(each, PreTrainedModel)]
    heads = {id(head.weight) for each in models if isinstance(head := each.get_output_embeddings(), nn.Linear)}
    tables = {id(each.weight) for each in net.modules() if isinstance(each, nn.Embedding)}
    linear = {id(each.weight) for each in net.modules() if isinstance(each, nn.Linear)} - heads - tables
    return {name for name, parameter in net.named_parameters() if id(parameter) in linear}


class MuonAdamW(Optimizer):
    """Both, over groups that share parameters' states and the schedule.

    A state has `momentum_buffer` for a matrix, AdamW's two moments for anything else.

    Args:
        groups: As `parameter_groups` gives them; MATRIX says which optimizer each has.
        lr: Of groups that state none.
        betas, eps, fused: AdamW's.

    Raises:
        ValueError: No group is one of matrices, or a parameter of such a group has not two dimensions.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        fused: bool,
    ) -> None:
        matrices, others = ([dict(each) for each in groups if each[MATRIX] is kind] for kind in (True, False))
        if not matrices:
            raise ValueError(
                "stage.optimizer: found muon in a stage that trains no weight of a linear layer, expected adamw"
            )
        self._muon = Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(others, lr=lr, betas=betas, eps=eps, fused=fused) if others else None
        more = {} if self._adamw is None else self._adamw.defaults
        # Matrices alone have AdamW's settings too: a checkpoint that is read takes those of now, by name.
        super().__init__([dict(each) for each in groups], {**self._muon.defaults, **more, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, kind in ((self._muon, True), (self._adamw, False)):
            if part is not None:
                # A checkpoint that is read puts other groups and states in place of those before.
                part.param_groups = [each for each in self.param_groups if each[MATRIX] is kind]
                part.state = self.state
                part.step()
        return loss

"""The loss of many tokens over a large vocabulary, part by part, so that their logits never exist whole.

hidden f[S, D] --rows--> f[R, D] --head--> logits f[R, W] --> losses f[R]     forgotten, and computed again in the
                                                                              backward pass
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def losses_in_parts(
    project: nn.Module, hidden: Float[Tensor, "S D"], targets: Int[Tensor, " S"], rows: int
) -> Float[Tensor, " S"]:
    """Cross-entropy of each token in float32.

    Args:
        project: The head.
        rows: Tokens of a part.
    """
    # Those of this pass, which may be copies in bfloat16 (training/compute_copies.py), for the backward pass as well.
    weights = dict[str, Tensor](project.named_parameters())
    part = partial(checkpoint, _losses, use_reentrant=False) if torch.is_grad_enabled() else _losses
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([part(project, weights, *each) for each in parts])


def _losses(project: nn.Module, weights: dict[str, Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(project, weights, (hidden,)).float(), targets, reduction="none")

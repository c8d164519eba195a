"""Trained parameters in groups of one rate and one weight decay."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from lightning_mllm.contracts import ParamGroup
from lightning_mllm.training.muon import MATRIX

BLOCK = re.compile(r"\.(?:blocks?|layers?|resblocks)\.(\d+)\.")
"""Where a parameter's name has the number of its block; other numbers, as those of a mixture's towers, are none."""


def parameter_groups(
    module: nn.Module,
    trained: Mapping[str, str],
    table: Mapping[str, ParamGroup],
    *,
    lr: float,
    weight_decay: float,
    decay_scalars: bool = False,
    matrices: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """The groups of an optimizer of torch: `name`, `params` (pairs of name and parameter), `lr`, `weight_decay`.

    Tensors of one dimension and biases are never decayed.

    Args:
        module: The net.
        trained: Parameter name -> the pattern that trains it (`freezing.match`).
        table: Pattern -> how.
        lr, weight_decay: Of patterns that state none.
        decay_scalars: Whether tensors of no dimension are decayed.
        matrices: Names of parameters that are in groups of their own, marked by `MATRIX` (muon.py); None marks none.
    """
    shares = {pattern: layer_shares(trained, pattern, how.layer_decay) for pattern, how in table.items()}
    groups: dict[tuple[str, bool, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if name in trained:
            shaped = parameter.ndim > 1 or (decay_scalars and parameter.ndim == 0)
            pattern, decayed = trained[name], shaped and not name.endswith("bias")
            matrix = matrices is not None and name in matrices
            groups.setdefault((pattern, decayed, shares[pattern][name], matrix), []).append((name, parameter))
    settings = []
    for (pattern, decayed, share, matrix), parameters in groups.items():
        how = table[pattern]
        decay = weight_decay if how.weight_decay is None else how.weight_decay
        marks = [*([] if decayed else ["not decayed"]), *([] if share == 1 else [f"rate x {share:.4g}"])]
        marks += ["muon"] if matrix else []
        settings.append(
            {
                "name": f"{pattern} ({', '.join(marks)})" if marks else pattern,
                "params": parameters,
                "lr": share * how.rate(lr),
                "weight_decay": decay if decayed else 0.0,
                **({} if matrices is None else {MATRIX: matrix}),
            }
        )
    return settings


def layer_shares(trained: Mapping[str, str], pattern: str, decay: float) -> dict[str, float]:
    """Of the parameters that `pattern` trains, what part of its rate each has.

    Of N blocks, block n (from 0) has decay^(N - n), what has no number decay^(N + 1): a tower's embeddings.

    Raises:
        ValueError: There are no blocks.
    """
    names = [name for name, own in trained.items() if own == pattern]
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    blocks = {name: int(found.group(1)) if (found := BLOCK.search(name)) else -1 for name in names}
    count = max(blocks.values()) + 1
    if count == 0:
        raise ValueError(f"stage.train: pattern {pattern!r} has a layer_decay, expected names with numbers of blocks")
    return {name: decay ** (count - block) for name, block in blocks.items()}

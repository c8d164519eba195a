"""Blocks compiled one by one (torch.compile), and a bound on how often.

A new kind of input costs seconds, and where a block has had too many torch goes on uncompiled, all but silently.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch._dynamo.config
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters
from transformers import AttentionInterface

from lightning_mllm.language.attention import SPANS, span_attention

MOST = 64
"""Graphs of one function: a pyramid's blocks have a few each, and a Q-Former's layers one for each of its passes."""


def compiled(forward: Callable[..., object]) -> Callable[..., object]:
    """A block's `forward`, compiled at its first use; blocks of one class share their graphs.

    The second length is compiled for all lengths. Raises ValueError in use, at the graph beyond `MOST`.
    """
    # Traced, its spans are numbers of the graph: each packed batch would be compiled anew.
    AttentionInterface.register(SPANS, torch.compiler.disable(span_attention))
    torch._dynamo.config.recompile_limit = MOST
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return partial(_bounded, torch.compile(forward))


def _bounded(forward: Callable[..., object], *args: object, **kwargs: object) -> object:
    try:
        return forward(*args, **kwargs)
    except FailOnRecompileLimitHit as error:
        raise ValueError(
            f"hardware.compile: found more than {torch._dynamo.config.recompile_limit} kinds of inputs of one block,"
            " each compiled anew, expected batches of few shapes (a token budget), or hardware.compile=false;"
            " TORCH_LOGS=recompiles tells them"
        ) from error


def graphs_compiled() -> int:
    """Graphs that this process has compiled so far."""
    return int(counters["stats"]["unique_graphs"])

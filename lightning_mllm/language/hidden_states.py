"""The decoder of a causal LM over embeddings, each segment of a row for itself.

Legend: B rows, T tokens a row, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_mllm.contracts import Batch

SDPA = "sdpa_mask_as_given"
"""The attention kernel of `sdpa`. For a name of its own transformers builds no mask, and so reads none from the device:
a mask that is given reaches the kernel, and where none is given attention is causal."""

KEYWORDS = "keywords_of_runs"
"""The attribute of a model whose decoder reads more of a batch than embeddings, mask and positions: a function that
makes keywords for it from `Layout.runs` (visual_expert.py)."""

AttentionInterface.register(SDPA, sdpa_attention_forward)


def lm_hidden_states(model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "B T D"]:
    """What the model's head reads: the last hidden states, after the final norm.

    Args:
        model: A causal language model of transformers.
        embeds: Of tokens and visual vectors.
        batch: A token attends to itself and to those before it in its own segment; what comes out at padding means
            nothing.

    Raises:
        ValueError: Packed rows that are longer than the sliding window of a model that has one.
    """
    layout = batch.layout
    keywords_of = getattr(model, KEYWORDS, None)
    keywords = {} if keywords_of is None else keywords_of(layout.runs)
    # A window is narrower than these rows: transformers makes the masks of its layers, and asks the device.
    windowed = embeds.shape[1] > (getattr(model.config, "sliding_window", None) or math.inf)
    if windowed and layout.packed:
        raise ValueError(
            f"language: found packed rows of {embeds.shape[1]} tokens (samples {batch.ids[:5]}) for a model with"
            f" sliding_window = {model.config.sliding_window}, expected at most as many"
        )
    # Padding behind a row is attended to by nothing but itself: without a mask the kernel takes its causal shortcut.
    needed = layout.packed or layout.padded_left or model.config._attn_implementation == "eager"
    mask = block_mask(batch.segments, embeds.dtype) if needed else None
    mask = (batch.segments > 0).long() if windowed else mask
    with nullcontext() if windowed else masks_as_given(model):
        # use_cache: with a cache, transformers ignores that positions restart, and segments attend to one another.
        output = model.base_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False, **keywords
        )
    return output.last_hidden_state


@contextmanager
def masks_as_given(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, a model with `sdpa` attention takes masks as they are given."""
    own = model.config._attn_implementation
    model.config._attn_implementation = SDPA if own == "sdpa" else own
    try:
        yield
    finally:
        model.config._attn_implementation = own


def head(model: PreTrainedModel) -> nn.Module:
    """What turns hidden states f[..., D] into logits."""
    found = model.get_output_embeddings()
    assert isinstance(found, nn.Module), "a causal language model without a head"
    return found


def block_mask(segments: Int[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """Additive: 0 where a token (row) attends to another (column), else the smallest number of `dtype`.

    A boolean mask would be misread by transformers' eager attention, without a word.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    # Padding sees itself: a row of nothing but forbidden columns gives NaN.
    return _additive(same & causal, dtype).unsqueeze(1)


def padding_mask(segments: Int[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, "B 1 1 T"]:
    """Additive, as `block_mask`, for what attends to whole rows: to all but padding."""
    return _additive(segments > 0, dtype)[:, None, None]


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)

"""The decoder of a causal LM over embeddings, each segment of a row for itself.

Legend: B rows, T tokens a row, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.language.visual_expert import PLAN, has_experts, plan_of


def lm_hidden_states(
    model: PreTrainedModel,
    embeds: Float[Tensor, "B T D"],
    segments: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    kinds: UInt8[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T D"]:
    """What the model's head reads: the last hidden states, after the final norm.

    Args:
        model: A causal language model of transformers.
        embeds: Of tokens and visual vectors.
        segments: 0 is padding, whose hidden states mean nothing; a token sees those before it in its own segment.
        positions: Restart at 0 in each segment.
        kinds: By which a model with visual experts routes; None is text alone.
    """
    mask = _mask(segments, embeds.dtype)
    plan = plan_of(kinds) if kinds is not None and has_experts(model) else None
    routing = {} if plan is None else {PLAN: plan}
    # use_cache: with a cache, transformers ignores that positions restart, and segments see one another.
    output = model.base_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False, **routing
    )
    return output.last_hidden_state


def _mask(segments: Int[Tensor, "B T"], dtype: torch.dtype) -> Tensor:
    """What transformers is told of who sees whom, beside that nobody sees what stands behind."""
    # One transfer from the device for both.
    packed, padded_before = torch.stack([(segments > 1).any(), (segments[:, 0] == 0).any()]).tolist()
    if packed:
        return block_mask(segments, dtype)
    if padded_before:
        return (segments > 0).long()
    # Padding behind a row is seen by nothing but itself: no mask, and the attention kernel takes its causal shortcut.
    return torch.ones_like(segments)


def head(model: PreTrainedModel) -> nn.Module:
    """What turns hidden states f[..., D] into logits."""
    found = model.get_output_embeddings()
    assert isinstance(found, nn.Module), "a causal language model without a head"
    return found


def block_mask(segments: Int[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """Additive: 0 where a token (row) sees another (column), else the smallest number of `dtype`.

    A boolean mask would be misread by transformers' eager attention, without a word.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    # Padding sees itself: a row of nothing but forbidden columns gives NaN.
    hidden = ~(same & causal)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(hidden, torch.finfo(dtype).min).unsqueeze(1)

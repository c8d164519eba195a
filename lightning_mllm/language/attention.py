"""Attention of rows that hold several segments: each segment by itself, and behind the prefix that it shares.

    q f[B,H,T,D]   k, v f[B,G,T,D]   --cut into spans (spans.py)-->   causal attention of each   -->  f[B,T,H,D]

On a GPU in 16 bits all spans are one call of torch's varlen attention; on a CPU they are cut into blocks of like sizes
(blocked_attention.py); elsewhere each is one call of SDPA. For a name of its own (`AttentionInterface.register`)
transformers makes no mask, and hands the keyword `spans` down to the blocks.

Legend: B rows, T tokens a row, H heads, G heads of keys and values, D width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_mllm.contracts import Batch
from lightning_mllm.spans import Spans

SDPA, SPANS = "sdpa_mask_as_given", "spans"
"""Implementations of attention. For a name of its own transformers makes no mask, and so reads none from the device: of
`SDPA` a mask that is given reaches the kernel, and where none is given attention is causal. `SPANS` is also the keyword
by which spans travel through a decoder to its blocks."""
MASKED = ("nemotron", "stablelm")
"""Types of models whose blocks hand no keyword to attention: of segments they are given a mask."""
SEGMENTED = {"full_attention", "sliding_attention"}
"""Kinds of layers in which a token reads its own segment alone; a convolution, say, reads the whole row."""


def attention_of(
    model: PreTrainedModel, batch: Batch, dtype: torch.dtype
) -> tuple[Tensor | None, str, dict[str, object]]:
    """Of rows with several segments, or left padding, or longer than a window: mask, implementation, keywords.

    Raises:
        ValueError: Packed rows for a model whose layers read whole rows, or with a segment that is longer than the
            sliding window of a model that has one.
    """
    config, spans, length = model.config, batch.layout.spans, batch.tokens.shape[1]
    layers = set(getattr(config, "layer_types", None) or ())
    if batch.layout.packed and (model._is_stateful or layers - SEGMENTED):
        raise ValueError(
            f"language: found packed rows (samples {batch.ids[:5]}) for a {config.model_type!r} model, whose layers"
            " read across segments, expected one segment a row (hardware.pack=false, no data.text)"
        )
    own = config._attn_implementation or SDPA
    window, longest = getattr(config, "sliding_window", None), length if spans is None else spans.longest[1]
    if window and longest > window:
        if batch.layout.packed:
            raise ValueError(
                f"language: found packed rows with a segment of {longest} tokens (samples {batch.ids[:5]}) for a model"
                f" with sliding_window = {window}, expected at most as many"
            )
        # transformers makes the masks of the layers, and asks the device.
        return (batch.segments > 0).long(), own, {}
    if own == "eager":
        return block_mask(batch.segments, dtype, spans), own, {}
    if config.model_type in MASKED:
        return block_mask(batch.segments, dtype, spans), SDPA, {}
    return None, SPANS, {SPANS: spans}


def span_attention(
    module: nn.Module,
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B G T D"],
    value: Float[Tensor, "B G T D"],
    attention_mask: None,
    *,
    spans: Spans | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: object,
) -> tuple[Float[Tensor, "B T H D"], None]:
    """What transformers calls in each block.

    Raises:
        ValueError: The decoder hands the spans not down, or the block wants more than plain attention.
    """
    more = any(others.get(name) is not None for name in ("softcap", "position_bias", "s_aux"))
    if spans is None or attention_mask is not None or more:
        raise ValueError(
            f"language: found {type(module).__name__}, which attends by other rules than whole segments, expected"
            " hardware.pack=false for it"
        )
    # A half-precision key may come beside a query that rotary positions raised to float32.
    q, k, v = (each.transpose(1, 2).flatten(0, 1).to(value.dtype) for each in (query, key, value))
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and not dropout:
        found = _varlen(q, k, v, spans, scaling)
    elif q.device.type == "cpu" and not dropout:
        found = _blocked(q, k, v, spans, scaling)
    else:
        found = _by_span(q, k, v, spans, scaling, dropout)
    return found.unflatten(0, (query.shape[0], query.shape[2])), None


def _varlen(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if spans.gathered is not None:
        k, v = k.index_select(0, spans.gathered), v.index_select(0, spans.gathered)
    keys = spans.queries if spans.gathered is None else spans.keys  # cuDNN asks for one object
    causal, grouped = (-1, 0), q.shape[1] != k.shape[1]
    found = varlen_attn(
        q, k, v, spans.queries, keys, *spans.longest, window_size=causal, scale=scaling, enable_gqa=grouped
    )
    assert isinstance(found, Tensor)
    return found


def _blocked(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scaling: float | None) -> Tensor:
    from lightning_mllm.language.blocked_attention import blocked_attention, blocks_of

    known, heads = vars(spans), q.shape[1]
    if (name := f"blocks of {heads} heads") not in known:  # found once for all layers
        known[name] = blocks_of(spans, heads)
    return blocked_attention(q, k, v, known[name], scaling)


def _by_span(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scaling: float | None, dropout: float) -> Tensor:
    # [T, H, D] -> [H, T, D]: a span is a view.
    q, k, v = (each.transpose(0, 1) for each in (q, k, v))
    grouped = q.shape[0] != k.shape[0]
    found = []
    for (start, end), (before, after) in zip(spans.own, spans.prefixes, strict=True):
        keys, values, mask = k[:, start:end], v[:, start:end], None
        if after > before:
            keys, values = torch.cat([k[:, before:after], keys], 1), torch.cat([v[:, before:after], values], 1)
            mask = torch.ones(end - start, keys.shape[1], dtype=torch.bool, device=q.device).tril(after - before)
        attended = F.scaled_dot_product_attention(
            q[None, :, start:end],
            keys[None],
            values[None],
            mask,
            dropout,
            mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        found.append(attended[0])
    return torch.cat(found, 1).transpose(0, 1)


def block_mask(
    segments: Int[Tensor, "B T"], dtype: torch.dtype, spans: Spans | None = None
) -> Float[Tensor, "B 1 T T"]:
    """Additive: 0 where a token (row) attends to another (column), else the smallest number of `dtype`.

    Args:
        segments: As in `Batch`; a token attends within its own.
        dtype: Of the scores.
        spans: Where they are known, what they say instead.
    """
    if spans is not None:
        blocks = spans.mask().unflatten(0, segments.shape).unflatten(2, segments.shape).diagonal(dim1=0, dim2=2)
        return _additive(blocks.permute(2, 0, 1).to(segments.device), dtype).unsqueeze(1)
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


AttentionInterface.register(SDPA, sdpa_attention_forward)
AttentionInterface.register(SPANS, span_attention)

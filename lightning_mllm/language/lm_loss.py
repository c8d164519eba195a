"""What a language model, causal or encoder-decoder, makes of the answers in a batch: one loss for both kinds.

    causal            embeds f[B, T, D] --decoder--> hidden --head at labels, shifted by one--> logits f[S, W]
    encoder-decoder   embeds f[B, T, D] --encoder--> memory --decoder over shifted targets, head--> logits f[S, W]

Legend: B rows, T tokens a row, D width, S supervised tokens in reading order, W words of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_mllm.contracts import Batch, Output, Term
from lightning_mllm.language.attention_masks import block_mask
from lightning_mllm.language.encoder_decoder import decoder_states

SDPA = "sdpa_mask_as_given"
"""The attention kernel of `sdpa`. For a name of its own transformers builds no mask, and so reads none from the device:
a mask that is given reaches the kernel, and where none is given attention is causal."""

KEYWORDS = "keywords_of_runs"
"""The attribute of a model whose decoder reads more of a batch than embeddings, mask and positions: a function that
makes keywords for it from `Layout.runs` (visual_expert.py)."""

AttentionInterface.register(SDPA, sdpa_attention_forward)


def target_logits(model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "S W"]:
    """The logits of every supervised token in float32, given what stands before it.

    Args:
        model: Of transformers.
        embeds: Of the batch's tokens, visual vectors in their slots: what a causal model decodes, or what an encoder
            reads.
        batch: A causal model learns its `labels`, an encoder-decoder its `targets`.

    Raises:
        ValueError: An encoder-decoder and a batch without targets, or with more than one segment a row.
    """
    states = decoder_states if model.config.is_encoder_decoder else lm_hidden_states
    hidden = states(model, embeds, batch)
    # Only supervised positions pass through the head: logits of all would cost more than the whole decoder.
    chosen = hidden.flatten(0, 1).index_select(0, batch.layout.supervised.hidden)
    return head(model)(chosen).float()


def lm_losses(
    model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch
) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Cross-entropy of each row in float32, summed over its supervised tokens, and their number.

    What is learned, and what candidates are ranked by; nothing to learn is a loss of 0 with a gradient of 0.
    """
    supervised = batch.layout.supervised
    each = F.cross_entropy(target_logits(model, embeds, batch), supervised.targets, reduction="none")
    zeros = torch.zeros(len(embeds), device=each.device)
    return zeros.index_add(0, supervised.rows, each), supervised.counts


def lm_output(model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch) -> Output:
    """The one term of a net that learns next tokens."""
    losses, tokens = lm_losses(model, embeds, batch)
    return Output(terms={"language": Term(losses=losses, tokens=tokens)})


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

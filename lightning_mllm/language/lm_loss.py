"""What a language model, causal or encoder-decoder, makes of the answers in a batch: one loss for both kinds.

    causal            embeds f[B, T, D] --decoder--> hidden --head at labels, shifted by one--> logits f[S, W]
    encoder-decoder   embeds f[B, T, D] --encoder--> memory --decoder over shifted targets, head--> logits f[S, W]

Legend: B rows, T tokens a row, D width, S supervised tokens in reading order, W words of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.contracts import IGNORE, Batch, Output, Term
from lightning_mllm.language.hidden_states import head, lm_hidden_states, padding_mask


class Answers(NamedTuple):
    """Supervised tokens and what the model says about each."""

    logits: Float[Tensor, "S W"]
    """In float32."""
    targets: Int[Tensor, " S"]
    rows: Int[Tensor, " S"]
    """The row of the batch that each belongs to."""


def target_logits(model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch) -> Answers:
    """The logits of every supervised token, given what stands before it.

    Args:
        model: Of transformers.
        embeds: Of the batch's tokens, visual vectors in their slots: what a causal model decodes, or what an encoder
            reads.
        batch: A causal model learns its `labels`, an encoder-decoder its `targets`.

    Raises:
        ValueError: An encoder-decoder and a batch without targets, or with more than one segment a row.
    """
    states = decoder_states if model.config.is_encoder_decoder else lm_hidden_states
    hidden, supervised = states(model, embeds, batch), batch.layout.supervised
    # Only supervised positions pass through the head: logits of all would cost more than the whole decoder.
    chosen = hidden.flatten(0, 1).index_select(0, supervised.hidden)
    return Answers(head(model)(chosen).float(), supervised.targets, supervised.rows)


def lm_losses(
    model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch
) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Cross-entropy of each row in float32, summed over its supervised tokens, and their number.

    What is learned, and what candidates are ranked by; nothing to learn is a loss of 0 with a gradient of 0.
    """
    logits, targets, rows = target_logits(model, embeds, batch)
    each = F.cross_entropy(logits, targets, reduction="none")
    zeros = torch.zeros(len(embeds), device=each.device)
    return zeros.index_add(0, rows, each), batch.layout.supervised.counts


def lm_output(model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch) -> Output:
    """The one term of a net that learns next tokens."""
    losses, tokens = lm_losses(model, embeds, batch)
    return Output(terms={"language": Term(losses=losses, tokens=tokens)})


def decoder_states(model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "B S D"]:
    """What the head of an encoder-decoder reads at each of the batch's `targets`.

    Raises:
        ValueError: A batch without targets, or with more than one segment a row.
    """
    targets = batch.targets
    if targets is None:
        raise ValueError(f"found a batch without targets (samples {batch.ids[:5]}), expected a decoder's tokens")
    if batch.layout.packed:
        raise ValueError(
            f"found several segments in a row (samples {batch.ids[:5]}), expected one for an encoder-decoder"
        )
    config = model.config
    # With a mask of all ones transformers would ask the device whether it is one.
    mask = padding_mask(batch.segments, embeds.dtype) if batch.layout.padded else None
    memory = model.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    start = torch.full_like(targets[:, :1], config.decoder_start_token_id)
    read = torch.cat([start, targets[:, :-1]], 1)
    # The decoder is causal and padded behind: its padding is read by nothing that is learned.
    hidden = model.get_decoder()(
        input_ids=read.masked_fill(read == IGNORE, config.pad_token_id),
        encoder_hidden_states=memory,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state
    return hidden * config.d_model**-0.5 if config.scale_decoder_outputs else hidden

"""What a language model, causal or encoder-decoder, makes of the answers in a batch: one loss for both kinds.

    causal            embeds f[B, T, D] --decoder--> hidden --head at labels, shifted by one--> logits f[S, W]
    encoder-decoder   embeds f[B, T, D] --encoder--> memory --decoder over shifted targets, head--> logits f[S, W]

Legend: B rows, T tokens a row, D width, S supervised tokens in reading order, W words of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.contracts import Batch, Output, Term
from lightning_mllm.language.attention import SDPA, attention_of
from lightning_mllm.language.encoder_decoder import decoder_states

KEYWORDS = "keywords_of_runs"
"""The attribute of a model whose decoder reads more of a batch than embeddings, mask and positions: a function that
makes keywords for it from `Layout.runs` (visual_expert.py)."""

SUPERVISED, SELECTS = "supervised_positions", "selects_supervised_rows"
"""The keyword by which positions reach the last block, and the attribute of a model whose last block reads it
(supervised_rows.py)."""

LOGITS_AT_ONCE = 1 << 26
"""A quarter of a GiB in float32; of more, parts are computed one by one (large_vocabulary.py)."""


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
    return head(model)(_target_states(model, embeds, batch)).float()


def _target_states(model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch) -> Float[Tensor, "S D"]:
    supervised = batch.layout.supervised
    seq2seq, given = model.config.is_encoder_decoder, (model, embeds, batch)
    hidden = decoder_states(*given) if seq2seq else lm_hidden_states(*given, supervised.positions)
    # Only supervised positions pass through the head: logits of all would cost more than the whole decoder.
    return hidden.flatten(0, 1).index_select(0, supervised.hidden)


def lm_losses(
    model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch
) -> tuple[Float[Tensor, " K"], Int[Tensor, " K"]]:
    """Cross-entropy of each sample in float32, summed over its supervised tokens, and their number.

    What is learned, and what candidates are ranked by; nothing to learn is a loss of 0 with a gradient of 0.
    """
    supervised = batch.layout.supervised
    hidden, project, targets = _target_states(model, embeds, batch), head(model), supervised.targets
    if len(hidden) > (rows := LOGITS_AT_ONCE // cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]):
        from lightning_mllm.language.large_vocabulary import losses_in_parts

        each = losses_in_parts(project, hidden, targets, rows)
    else:
        each = F.cross_entropy(project(hidden).float(), targets, reduction="none")
    zeros = torch.zeros(len(supervised.counts), device=each.device)
    return zeros.index_add(0, supervised.samples, each), supervised.counts


def lm_output(model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch) -> Output:
    """The one term of a net that learns next tokens."""
    losses, tokens = lm_losses(model, embeds, batch)
    return Output(terms={"language": Term(losses=losses, tokens=tokens)})


def lm_hidden_states(
    model: PreTrainedModel, embeds: Float[Tensor, "B T D"], batch: Batch, positions: Int[Tensor, " P"] | None = None
) -> Float[Tensor, "B T D"]:
    """What the model's head reads: the last hidden states, after the final norm.

    Args:
        model: A causal language model of transformers.
        embeds: Of tokens and visual vectors.
        batch: A token attends to itself and to those before it in its own segment; what comes out at padding means
            nothing.
        positions: Where alone something is to come out, if not everywhere.

    Raises:
        ValueError: As `attention_of`.
    """
    layout = batch.layout
    keywords_of = getattr(model, KEYWORDS, None)
    keywords = {} if keywords_of is None else keywords_of(layout.runs)
    # Padding behind a row is attended to by nothing but itself: without a mask the kernel takes its causal shortcut.
    mask, implementation = None, SDPA
    window, eager = getattr(model.config, "sliding_window", None), model.config._attn_implementation == "eager"
    if layout.spans is not None or eager or embeds.shape[1] > (window or math.inf):
        mask, implementation, more = attention_of(model, batch, embeds.dtype)
        keywords |= more
    if positions is not None and hasattr(model, SELECTS):
        keywords[SUPERVISED] = positions
    with attention_implementation(model, implementation):
        # use_cache: with a cache, transformers ignores that positions restart, and segments attend to one another.
        output = model.base_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False, **keywords
        )
    return output.last_hidden_state


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """While it lasts, the model attends by the function that is registered with transformers under `name`."""
    own = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = own


def head(model: PreTrainedModel) -> nn.Module:
    """What turns hidden states f[..., D] into logits."""
    found = model.get_output_embeddings()
    assert isinstance(found, nn.Module), "a causal language model without a head"
    return found

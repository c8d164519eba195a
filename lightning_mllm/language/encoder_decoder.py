"""What the head of an encoder-decoder language model reads.

Legend: B rows, T tokens of the encoder, S tokens of the decoder, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.contracts import IGNORE, Batch
from lightning_mllm.language.attention import padding_mask


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

"""What candidates cost behind prompts: each prompt is read once, for all candidates.

Legend: B rows, T tokens of the longest prompt, S tokens of the longest answer, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.contracts import IGNORE, Batch
from lightning_mllm.language.lm_loss import head
from lightning_mllm.language.prompts import Prompts
from lightning_mllm.language.shared_prefix import SharedPrefix


def answer_losses(
    model: PreTrainedModel,
    embeds: Float[Tensor, "B T D"],
    batch: Batch,
    answered: Sequence[Batch],
    shared: SharedPrefix | None = None,
) -> list[Float[Tensor, " B"]]:
    """As `lm_losses` of each of `answered`: the cross-entropy of every row's answer, summed over its tokens.

    Args:
        model: One that `reads_prompts`.
        embeds: Of the prompts, visual vectors in their slots.
        batch: The prompts, padded on the left.
        answered: The prompts with answers behind them (`Processor.with_answers`).
        shared: What rows of the batch have in common.
    """
    width = batch.tokens.shape[1]
    room = max(each.tokens.shape[1] for each in answered) - width
    known = {"positions": batch.positions, "kinds": batch.kinds}
    prompts = Prompts(model, embeds, batch.segments > 0, room, shared=shared, **known)
    words, found = model.get_input_embeddings(), []
    for each in answered:
        labels = each.labels[:, width:]
        # The last token predicts nothing; it is read so that an answer of one token is a pass too, as on other ranks.
        behind = prompts.behind(words(each.tokens[:, width:]))
        states = torch.cat([prompts.hidden.unsqueeze(1), behind[:, :-1]], 1)
        logits = head(model)(states).float().flatten(0, 1)
        losses = F.cross_entropy(logits, labels.flatten(), reduction="none", ignore_index=IGNORE)
        found.append(losses.unflatten(0, labels.shape).sum(1))
    return found

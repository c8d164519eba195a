"""What BLIP-2's first stage puts on a Q-Former, and how its three losses choose.

arXiv 2301.12597, sec. 3.2, and the released code.

    queries f[B,Q,D] --vision_proj--> f[B,Q,C]        contrast
    [CLS]   f[B,D]   --text_proj----> f[B,C]
    queries f[B,Q,D] --itm_head-----> f[B,Q,2]        matching
    text    f[.,D]   --transform, norm--> f[.,D] x words' + bias --> f[.,W]   captioning

Legend: B pairs of this rank, A of all ranks, Q queries, D their width, C that of the common space, W words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

STD = 0.02
"""Of BERT's initial values, for the part of its head that is here."""
TEMPERATURE = 0.07
"""Where the learned temperature starts; similarities are divided by it."""


class AlignmentHeads(nn.Module):
    """Heads of contrast, matching and captioning; the last decodes with the Q-Former's own table of words."""

    def __init__(self, in_width: int, width: int, vocab: int, eps: float) -> None:
        super().__init__()
        self.vision_proj = nn.Linear(in_width, width)
        self.text_proj = nn.Linear(in_width, width)
        self.itm_head = nn.Linear(in_width, 2)
        # FSDP2 refuses parameters without a dimension.
        self.temperature = nn.Parameter(torch.full((1,), TEMPERATURE))
        self.transform = nn.Linear(in_width, in_width)
        self.norm = nn.LayerNorm(in_width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab))
        nn.init.normal_(self.transform.weight, std=STD)
        nn.init.zeros_(self.transform.bias)

    def words(self, hidden: Float[Tensor, "... D"], table: Float[Tensor, "W D"]) -> Float[Tensor, "... W"]:
        """Logits of words (BERT's head, arXiv 1810.04805)."""
        return F.linear(self.norm(F.gelu(self.transform(hidden))), table, self.bias)


@dataclass(frozen=True, kw_only=True)
class AlignmentConnector:
    """The heads of BLIP-2's first stage; fresh."""

    width: int = 256
    """C."""
    eps: float = 1e-12
    in_width: int = 0
    """D; filled in by the architecture."""
    vocab: int = 0
    """W; filled in by the architecture."""

    def build(self) -> AlignmentHeads:
        assert self.in_width > 0 and self.vocab > 0, self
        return AlignmentHeads(self.in_width, self.width, self.vocab, self.eps)

    def pretrained(self) -> None:
        return None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []


def targets_of(own: Bool[Tensor, "B A"], smoothing: float) -> Float[Tensor, "B A"]:
    """How much of each row's answer lies on each of A: `smoothing` on all alike, the rest shared by its own."""
    share = own.float() / own.sum(1, keepdim=True)
    return (1 - smoothing) * share + smoothing / own.shape[1]


def contrastive(similarity: Float[Tensor, "B A"], targets: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each row, in float32."""
    return F.cross_entropy(similarity.float(), targets, reduction="none")


@torch.no_grad()
def hard_negatives(
    similarity: Float[Tensor, "B A"], own: Bool[Tensor, "B A"], generator: torch.Generator | None = None
) -> Int[Tensor, " B"]:
    """For each row one of the A that are not its own, drawn in proportion to exp(similarity).

    Raises:
        ValueError: A row has nothing but its own.
    """
    if bool(own.all(1).any()):
        raise ValueError(
            f"matching: found no other image among {own.shape[1]} pairs, expected at least one to tell apart"
        )
    chances = similarity.float().masked_fill(own, float("-inf")).softmax(1)
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)

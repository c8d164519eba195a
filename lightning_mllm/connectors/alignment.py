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

from lightning_mllm.contracts import Supervised

STD = 0.02
"""Of BERT's initial values, for the part of its head that is here."""
TEMPERATURE = 0.07
"""Where the learned temperature starts; similarities are divided by it."""


@dataclass(frozen=True)
class Pairs:
    """Images and their texts."""

    visual: Float[Tensor, "B V E"]
    tokens: Int[Tensor, "B L"]
    real: Bool[Tensor, "B L"]
    own: Bool[Tensor, "B A"]
    """Which pairs of all ranks are no negatives of each pair of this rank."""
    supervised: Supervised
    """The tokens of the texts that captioning learns, as in `Layout`."""
    files: int
    """How many different images this rank has."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What each loss is multiplied by; all 1 in the paper. One of 0 is reported and not learned.

    Raises:
        ValueError: A weight is below 0, or all are 0.
    """

    contrast: float = 1.0
    matching: float = 1.0
    captioning: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"model.loss_weights.{name}: found {weight}, expected a finite number of at least 0")
        if not any(vars(self).values()):
            raise ValueError("model.loss_weights: found 0 for all, expected at least one loss to learn")

    def unused_parameters(self) -> set[str]:
        """Names of parameters of the heads that no loss reaches."""
        reached = {
            "contrast": ("vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias", "temperature"),
            "matching": ("itm_head.weight", "itm_head.bias"),
            "captioning": ("transform.weight", "transform.bias", "norm.weight", "norm.bias", "bias"),
        }
        return {head for name, weight in vars(self).items() if not weight for head in reached[name]}


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


def check_negatives(own: Bool[Tensor, "B A"]) -> None:
    """Raises ValueError if a row has nothing but its own; waits for the device."""
    if bool(own.all(1).any()):
        raise ValueError(
            f"matching: found no other image among {own.shape[1]} pairs, expected at least one to tell apart"
        )


@torch.no_grad()
def hard_negatives(
    similarity: Float[Tensor, "B A"], own: Bool[Tensor, "B A"], generator: torch.Generator | None = None
) -> Int[Tensor, " B"]:
    """For each row one of the A that are not its own, drawn in proportion to exp(similarity); any where all are."""
    chances = similarity.float().masked_fill(own, float("-inf")).softmax(1)
    # As torch.multinomial draws one, which also asks the device whether the chances are any.
    return (chances / torch.empty_like(chances).exponential_(generator=generator)).argmax(1)


def apart_or_together(logits: Float[Tensor, "N 2"]) -> Float[Tensor, " B"]:
    """Cross-entropy, in float32: each pair's mean over three rows, of which the first B belong together, 2 B do not."""
    together = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    together[: len(logits) // 3] = 1
    return F.cross_entropy(logits.float(), together, reduction="none").view(3, -1).mean(0)


def summed_by_text(logits: Float[Tensor, "S W"], supervised: Supervised, label_smoothing: float) -> Float[Tensor, " B"]:
    """Cross-entropy of the words that are learned, summed over each text, in float32."""
    each = F.cross_entropy(logits.float(), supervised.targets, label_smoothing=label_smoothing, reduction="none")
    return torch.zeros(len(supervised.counts), device=each.device).index_add(0, supervised.samples, each)


def nearest_query(images: Float[Tensor, "N Q C"], texts: Float[Tensor, "M C"]) -> Float[Tensor, "N M"]:
    """Cosine of each text to the nearest query of each image (sec. 3.2)."""
    return torch.einsum("nqc,mc->nmq", images, texts).amax(-1)

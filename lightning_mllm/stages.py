"""What a published stage trains, what is tested behind it, and what its global batch comes to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """How the parameters under one pattern are trained; None takes the stage's own value."""

    lr: float | None = None
    lr_scale: float = 1.0
    """What the rate, the stage's or one's own, is multiplied by (CogVLM's tower: a tenth of all else's)."""
    weight_decay: float | None = None
    layer_decay: float = 1.0
    """Block n of N has this to the power of N - n of the rate, what stands before them N + 1 (BEiT, arXiv 2106.08254;
    BLIP-2's released `lr_layer_decay`)."""
    exclude: tuple[str, ...] = ()
    """Patterns of names that stay out: frozen, or another pattern's; each matches some name of the pattern's."""

    def __post_init__(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"stage.train: found lr {self.lr}, expected a number above 0")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(f"stage.train: found weight_decay {self.weight_decay}, expected at least 0")
        if not self.lr_scale > 0:
            raise ValueError(f"stage.train: found lr_scale {self.lr_scale}, expected a number above 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"stage.train: found layer_decay {self.layer_decay}, expected above 0 and at most 1")

    def rate(self, lr: float) -> float:
        """The peak learning rate, before any decay over layers, in a stage of rate `lr`."""
        return self.lr_scale * (lr if self.lr is None else self.lr)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One published training stage: what is trained, everything unnamed being frozen and in eval mode."""

    train: dict[str, ParamGroup]
    """Glob pattern over parameter names -> how it is trained."""
    lora: bool = False
    """Whether the stage trains low-rank adapters."""
    lora_targets: tuple[str, ...] = ()
    """The layers that have one, as `Lora.targets`, where the settings name none."""


UNANSWERED = ("retrieval", "perplexity", "loss")
"""Tasks of which nothing is answered; their scores are of another kind (evaluation/retrieval.py, text_scores.py)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation set as the training side sees it: which scores to compute and what to call them."""

    task: str
    part: str = ""
    """A named part of the test data ('novel'); empty for the main one."""
    blind: bool = False
    """Images exchanged between samples: what a model that cannot see would score."""

    @property
    def answered(self) -> bool:
        """Whether the net writes, or chooses, an answer to each sample."""
        return self.task not in UNANSWERED

    @property
    def suffix(self) -> str:
        """What is appended to a score's name: `vqa_accuracy` + `_novel_blind`."""
        return ("_" + self.part if self.part else "") + ("_blind" if self.blind else "")


def accumulation(setting: str, batch: int, micro_batch: int, world: int) -> int:
    """Micro-batches of each of `world` processes in one optimizer step of `batch` samples.

    Raises:
        ValueError: the batch of `setting` is not a multiple of what the processes take at once.
    """
    at_once = micro_batch * world
    if micro_batch < 1 or batch < 1 or batch % at_once:
        raise ValueError(
            f"{setting}: found {batch}, expected a multiple of {at_once} = micro_batch {micro_batch} x {world}"
            " processes"
        )
    return batch // at_once

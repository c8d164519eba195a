"""The visual expert (CogVLM, Wang et al. 2023, arXiv 2311.03079, sec. 2.1): a language model with weights for images.

The idea: image tokens are no words, so a block gives them a second QKV, attention output and feed-forward, started as
copies of its own. All tokens attend together under one causal mask and share the norms; a text alone never meets an
expert, so what the language model knew stays as it was.

    x f[B,T,D] --cut into runs--> text  --language--.
                                  image --vision----'--> joined in order f[B,T,E]

Which tokens are an expert's is derived from their kinds here and nowhere else:

    kind       TEXT  IMAGE_BEGIN  IMAGE  IMAGE  IMAGE  IMAGE_END  TEXT  TEXT
    expert      -        x          x      x      x        -        -     -

All vectors of an image have one position (`processing/shared_positions.py`).

Legend: B rows, T tokens a row, D and E widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from inspect import Parameter, signature
from itertools import groupby
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.contracts import TokenKind
from lightning_mllm.language.lm_loss import KEYWORDS

PLAN = "expert_plan"
"""The keyword by which a plan travels through a decoder to its blocks."""

Hooked = tuple[tuple[object, ...], dict[str, object]]
"""What a pre-hook returns: arguments by position and by name."""

Part = Literal["qkv", "output", "ffn"]
PARTS: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "ffn": ("mlp",),
}
"""What an expert has, as modules of a block."""


OF_EXPERT = (TokenKind.IMAGE_BEGIN, TokenKind.IMAGE)
"""Kinds of tokens that are an expert's; an image's end is language's (the released code)."""


def vision_mask(kinds: UInt8[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Whether a token is an expert's."""
    return torch.stack([kinds == kind for kind in OF_EXPERT]).any(0)


@dataclass(frozen=True)
class Plan:
    """Which expert a batch's tokens belong to: runs of language and vision in turn, rows one behind the other."""

    lengths: tuple[int, ...]
    """Tokens of each run; their sum is B x T."""
    vision: int
    """The first run of vision, 0 or 1."""
    closed: bool
    """Whether an IMAGE_END, which is language's, stands behind every run of vision, so that no word is predicted from
    one of vision's tokens."""

    def runs(self, vision: bool) -> slice:
        """Where the runs of one expert stand among all."""
        return slice(self.vision if vision else 1 - self.vision, None, 2)


def plan_of(runs: Sequence[tuple[int, int]]) -> Plan | None:
    """How tokens are routed, from the runs of their kinds (`Layout.runs`); None where no token is an image's, and
    everything is the language model's."""
    parts = [
        (vision, sum(length for _, length in some)) for vision, some in groupby(runs, lambda run: run[0] in OF_EXPERT)
    ]
    if not any(vision for vision, _ in parts):
        return None
    kinds = [kind for kind, _ in runs]
    ends = {after for kind, after in zip(kinds, [*kinds[1:], None], strict=True) if kind in OF_EXPERT}
    closed = ends <= {*OF_EXPERT, TokenKind.IMAGE_END}
    return Plan(tuple(length for _, length in parts), 0 if parts[0][0] else 1, closed)


def keywords_of_runs(runs: Sequence[tuple[int, int]]) -> dict[str, object]:
    """What a decoder with experts is given of a batch beside its embeddings."""
    plan = plan_of(runs)
    return {} if plan is None else {PLAN: plan}


class Switch:
    """The plan in force, of all blocks of one model.

    It is a pre-hook of every `self_attn` and takes the plan out of what the block hands down. Not of the block: with
    activation checkpointing a block runs a second time without its hooks, maybe after another batch.
    """

    plan: Plan | None = None

    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> Hooked:
        plan = kwargs.pop(PLAN, None)
        assert plan is None or isinstance(plan, Plan)
        self.plan = plan
        return args, kwargs


class Routed(nn.Module):
    """Two modules of one shape, the language model's own and the expert that images go through.

    Without image tokens it is the language module, bit for bit; the expert then has a gradient of exactly zero, so that
    no rank is without one.
    """

    def __init__(self, language: nn.Module, vision: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.language = language
        self.vision = vision
        self.switch = switch

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        plan = self.switch.plan
        if plan is None:
            return self._alone(x)
        pieces = x.flatten(0, 1).split(plan.lengths)
        written: list[Tensor] = list(pieces)
        for vision, module in ((False, self.language), (True, self.vision)):
            runs = plan.runs(vision)
            if pieces[runs]:
                # One run is a view of its tokens, and is not copied.
                mine = pieces[runs][0] if len(pieces[runs]) == 1 else torch.cat(pieces[runs])
                written[runs] = module(mine).split(plan.lengths[runs])
        return torch.cat(written).unflatten(0, x.shape[:2])

    def _alone(self, x: Tensor) -> Tensor:
        written = self.language(x)
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters()):
            written = written + self.vision(x[:, :0]).sum()
        return written


def add_visual_experts(
    model: PreTrainedModel,
    every: int = 1,
    parts: Sequence[Part] = get_args(Part),
    start: Literal["copy", "fresh"] = "copy",
) -> None:
    """Puts an expert beside modules of the blocks of `model`, in place.

    Args:
        model: A causal language model with Llama's blocks, whatever its biases, norms and groups of heads.
        every: Blocks 0, `every`, 2 x `every`, ... get one.
        parts: Which modules have an expert; the others serve all tokens.
        start: The expert's values: the language model's, or random ones as its linear layers start with.

    Raises:
        ValueError: The blocks of `model` are not Llama's.
    """
    blocks = _blocks(model)
    switch = Switch()
    setattr(model, KEYWORDS, keywords_of_runs)
    for block in blocks:
        block.self_attn.register_forward_pre_hook(switch, with_kwargs=True)  # pyright: ignore
    for block in blocks[::every]:
        for path in (path for part in parts for path in PARTS[part]):
            owner, _, name = path.rpartition(".")
            language = block.get_submodule(path)
            vision = deepcopy(language)
            if start == "fresh":
                _renew(vision, getattr(model.config, "initializer_range", 0.02))
            setattr(block.get_submodule(owner), name, Routed(language, vision, switch))


def _blocks(model: PreTrainedModel) -> Sequence[nn.Module]:
    blocks = getattr(model.base_model, "layers", None)
    found = f"language: found a {model.config.model_type!r} model"
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"{found} without layers, expected one with Llama's blocks for the visual expert")
    modules = dict(blocks[0].named_modules())
    for path in (path for part in PARTS.values() for path in part):
        if path not in modules:
            raise ValueError(f"{found}, whose blocks have no {path}, expected Llama's blocks for the visual expert")
    for module in (model.base_model, blocks[0], modules["self_attn"]):
        if all(each.kind != Parameter.VAR_KEYWORD for each in signature(module.forward).parameters.values()):
            raise ValueError(
                f"{found}, whose {type(module).__name__} hands no keyword on, expected Llama's blocks for the visual"
                " expert"
            )
    return list(blocks)


def _renew(module: nn.Module, deviation: float) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def has_experts(model: nn.Module) -> bool:
    return any(isinstance(module, Routed) for module in model.modules())


def unused_names(model: PreTrainedModel) -> set[str]:
    """Parameters of experts that no loss reaches, where an IMAGE_END closes every image.

    What the last block writes at image tokens is read by nobody; only its keys and values are, by the text behind.
    """
    if not has_experts(model):
        return set()
    last = _blocks(model)[-1]
    silent = ("self_attn.q_proj", *PARTS["output"], *PARTS["ffn"])
    routed = [module for path in silent if isinstance(module := last.get_submodule(path), Routed)]
    inside = {id(parameter) for each in routed for parameter in each.vision.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}

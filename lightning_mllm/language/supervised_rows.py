"""The last block's feed-forward at supervised positions alone: what it writes elsewhere is read by nothing.

    x f[B,T,D] --rows that predict a learned token--> f[P,D] --feed-forward--> f[P,D] --zeros elsewhere--> f[B,T,D]

Keys and values of the last block come from all tokens; its feed-forward, two thirds of its work, serves the loss alone.

Legend: B rows, T tokens a row, P positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.language.lm_loss import SELECTS, SUPERVISED

Hooked = tuple[tuple[object, ...], dict[str, object]]


class _Selection:
    """The positions in force. As pre-hook of the block's `self_attn` it takes them out of what the block hands down: a
    checkpointed block runs a second time, maybe after another batch."""

    positions: Tensor | None = None
    shape: torch.Size | None = None

    def take(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> Hooked:
        found = kwargs.pop(SUPERVISED, None)
        assert found is None or isinstance(found, Tensor)
        self.positions = found
        return args, kwargs

    def select(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        if self.positions is None:
            return None
        (x,) = args
        switch = getattr(module, "switch", None)
        if switch is not None and switch.plan is not None:
            if not switch.plan.closed:  # some of these rows may be an expert's (visual_expert.py)
                self.positions = None
                return None
            switch.plan = None
        self.shape = x.shape
        return (x.flatten(0, -2).index_select(0, self.positions)[None],)

    def scatter(self, module: nn.Module, args: tuple[Tensor], written: Tensor) -> Tensor | None:
        if self.positions is None:
            return None
        assert self.shape is not None
        rows = written.new_zeros(self.shape[:-1].numel(), written.shape[-1])
        return rows.index_copy(0, self.positions, written.flatten(0, -2)).view(*self.shape[:-1], -1)


def select_supervised_rows(model: PreTrainedModel) -> None:
    """Lets the last block of `model` read `SUPERVISED`, in place; models of other blocks than Llama's and OPT's stay
    as they are."""
    layers = next((each for each in model.base_model.modules() if isinstance(each, nn.ModuleList) and len(each)), None)
    if layers is None:
        return
    last: dict[str, nn.Module] = dict(layers[-1].named_children())
    begin, end = (last.get("fc1"), last.get("fc2")) if "fc1" in last else (last.get("mlp"), last.get("mlp"))
    attention, inner = last.get("self_attn"), getattr(begin, "language", begin)
    if attention is None or begin is None or end is None or not (hasattr(inner, "down_proj") or begin is not end):
        return
    selection = _Selection()
    attention.register_forward_pre_hook(selection.take, with_kwargs=True)
    begin.register_forward_pre_hook(selection.select)
    end.register_forward_hook(selection.scatter)
    setattr(model, SELECTS, True)

"""Prompts that a causal model reads once; answers are written, or judged, behind their keys and values.

    prompts f[B, T, D], padded on the left --moved to the left--> one causal pass --> keys, values f[B, H, T, d]
    behind them f[B, S, D] --one pass, which sees the real tokens of its prompt, and causally itself--> f[B, S, D]

Padding that stands behind a row is read by nothing in a causal pass, which so needs no mask; later passes mask it.

Legend: B rows, T tokens of the longest prompt, S tokens behind it, H heads of width d, D width, R tokens there is room
for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lightning_mllm.contracts import runs_of
from lightning_mllm.language.attention import SDPA
from lightning_mllm.language.lm_loss import KEYWORDS, attention_implementation
from lightning_mllm.language.shared_prefix import SharedPrefix

MODEL_TYPES = ("llama", "mistral", "opt", "qwen2", "qwen3")
"""Models whose rows are read here: positions and masks are taken as they are given, and attention looks at all keys."""


def reads_prompts(model: PreTrainedModel) -> bool:
    """Whether `Prompts` can be of this model; others are transformers' own business."""
    config = model.config
    whole = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return config.model_type in MODEL_TYPES and config._attn_implementation == "sdpa" and whole and not windowed


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether parameters are spread over ranks, which must then all step until the last answer is done."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


class _Layer(DynamicLayer):
    """Keys and values of one block in memory for `room` tokens, so that a new token copies no old ones."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0
        self.memory: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        new = key_states, value_states
        if not self.memory:
            self.memory = tuple(each.new_empty(*each.shape[:2], self.room, each.shape[3]) for each in new)
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[2]
        for memory, each in zip(self.memory, new, strict=True):
            memory[:, :, start : self.length] = each
        self.keys, self.values = (memory[:, :, : self.length] for memory in self.memory)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Keeps these rows alone, in this order; one may be kept several times."""
        kept = [memory[:, :, : self.length].index_select(0, rows) for memory in self.memory]
        self.memory = tuple(each.new_empty(*each.shape[:2], self.room, each.shape[3]) for each in kept)
        for memory, each in zip(self.memory, kept, strict=True):
            memory[:, :, : self.length] = each


class Prompts:
    """Rows that were read.

    Args:
        model: A causal language model for which `reads_prompts` holds.
        embeds: Of the prompts, padded on the left.
        mask: Non-zero where a token is real.
        room: Tokens that may stand behind a prompt.
        positions: As in `Batch`; None counts.
        kinds: As in `Batch`, of a model with visual experts.
        shared: What rows have in common, which is read once, but where parameters are sharded: ranks must pass equally
            often, and not all of them may have something to share.
    """

    hidden: Float[Tensor, "B D"]
    """What the model's head reads at the last token of each row."""

    def __init__(
        self,
        model: PreTrainedModel,
        embeds: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"] | Int[Tensor, "B T"],
        room: int,
        *,
        positions: Int[Tensor, "B T"] | None = None,
        kinds: UInt8[Tensor, "B T"] | None = None,
        shared: SharedPrefix | None = None,
    ) -> None:
        self.model = model
        count, width = mask.shape
        steps = torch.arange(width, device=embeds.device)
        lengths = mask.bool().sum(1)
        # The one wait of a batch: whether there is any padding.
        if padded := int(lengths.min()) < width:
            order = (steps + (width - lengths).unsqueeze(1)) % width
            embeds = embeds.gather(1, order.unsqueeze(2).expand_as(embeds))
            positions = None if positions is None else positions.gather(1, order)
            kinds = None if kinds is None else kinds.gather(1, order)
        positions = steps.expand(count, -1) if positions is None else positions
        rows = torch.arange(count, device=embeds.device)
        self.following = positions[rows, lengths - 1] + 1
        """i[B]: the position of the token behind each prompt."""
        self.seen = F.pad(steps < lengths.unsqueeze(1), (0, room), value=True) if padded else None
        """b[B, R]: what later passes attend to; None for everything."""
        self.length = width
        self._cache = Cache(layers=[_Layer(width + room) for _ in range(model.config.num_hidden_layers)])
        shared = None if is_sharded(model) else shared
        start = 0 if shared is None else shared.length
        if shared is not None:
            firsts = torch.tensor(shared.firsts, device=embeds.device)
            mine = None if kinds is None else kinds[firsts, :start]
            self._pass(embeds[firsts, :start], None, positions[firsts, :start], mine)
            for layer in self._layers:
                layer.keep(torch.tensor(shared.owners, device=embeds.device))
        # Where something stands before it, a row sees that too, and causally itself.
        seen = None if shared is None else _behind(start, width - start, embeds.device)
        mine = None if kinds is None else kinds[:, start:]
        hidden = self._pass(embeds[:, start:], seen, positions[:, start:], mine)
        self.hidden = hidden[rows, lengths - 1 - start]

    def step(self, embeds: Float[Tensor, "B D"], number: int) -> Float[Tensor, "B D"]:
        """Reads the token `number`, from 0, behind each prompt; what the head reads there."""
        end = self.length + number + 1
        mask = None if self.seen is None else self.seen[:, None, None, :end]
        positions = (self.following + number).unsqueeze(1)
        return self._pass(embeds.unsqueeze(1), mask, positions)[:, 0]

    def behind(self, embeds: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Reads tokens behind each prompt and forgets them; what the head reads there. Padding stands behind."""
        width = embeds.shape[1]
        mask = _behind(self.length, width, embeds.device)
        mask = mask if self.seen is None else mask & self.seen[:, None, None, : self.length + width]
        positions = self.following.unsqueeze(1) + torch.arange(width, device=embeds.device)
        # What was read behind the prompts before is written over.
        for layer in self._layers:
            layer.length = self.length
        return self._pass(embeds, mask, positions)

    def keep(self, rows: Sequence[int]) -> Int[Tensor, " K"]:
        """Keeps some rows alone; their indices on the device."""
        chosen = torch.tensor(rows, device=self.following.device)
        self.following = self.following[chosen]
        self.seen = None if self.seen is None else self.seen[chosen]
        for layer in self._layers:
            layer.keep(chosen)
        return chosen

    @property
    def _layers(self) -> list[_Layer]:
        return self._cache.layers  # pyright: ignore[reportReturnType]

    def _pass(self, embeds: Tensor, mask: Tensor | None, positions: Tensor, kinds: Tensor | None = None) -> Tensor:
        keywords_of = getattr(self.model, KEYWORDS, None)
        keywords = {} if keywords_of is None or kinds is None else keywords_of(runs_of(kinds))
        with attention_implementation(self.model, SDPA):
            found = self.model.base_model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                **keywords,
            )
        return found.last_hidden_state


def _behind(before: int, width: int, device: torch.device) -> Bool[Tensor, "1 1 S R"]:
    """What S = `width` tokens attend to that stand behind `before` others: to those, and causally to themselves."""
    return torch.ones(width, before + width, dtype=torch.bool, device=device).tril(before)[None, None]

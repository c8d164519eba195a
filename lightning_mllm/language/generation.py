"""Writing answers: greedy, beam and nucleus decoding over transformers' `generate`, from embeddings.

    embeds f[B, T, D], mask [B, T] (left-padded) --> generate with KV cache --> B lists of new token ids

Legend: B rows, T tokens a row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are written; the default is greedy."""

    max_new_tokens: int = 32
    num_beams: int = 1
    top_p: float | None = None
    """Set, answers are sampled from the smallest set of tokens holding this much probability (Holtzman et al. 2020)."""
    temperature: float = 1.0
    """Divides the logits before sampling; needs `top_p` (1.0 keeps every token)."""
    length_penalty: float = 1.0
    """Beam scores are divided by length to this power: below 0 favours short answers, above 0 long ones."""
    repetition_penalty: float = 1.0
    """Divides the score of tokens already written (Keskar et al. 2019, sec. 4.1); the prompt's do not count."""
    min_new_tokens: int = 0
    seed: int | None = 0
    """Of the sampling, restarted on each call, so that an answer depends on its batch alone; None draws on."""

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "num_beams": (self.num_beams >= 1, "at least 1"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "in (0, 1], or none for no sampling"),
            "temperature": (self.temperature > 0, "above 0"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "min_new_tokens": (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                f"from 0 to max_new_tokens, {self.max_new_tokens}",
            ),
        }
        for name, (kept, expected) in rules.items():
            if not kept:
                raise ValueError(f"decoding: {name} is {getattr(self, name)}, expected {expected}")
        if self.temperature != 1 and self.top_p is None:
            raise ValueError(
                f"decoding: temperature is {self.temperature} but nothing is sampled, "
                "expected top_p too (1.0 for plain sampling)"
            )
        if self.length_penalty != 1 and self.num_beams == 1:
            raise ValueError(
                f"decoding: length_penalty is {self.length_penalty} but num_beams is 1, expected at least 2 beams"
            )


class StopText(Protocol):
    """A text that ends an answer as soon as its tokens complete it."""

    @property
    def window(self) -> int:
        """How many tokens hold the text."""
        ...

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the last of an answer's tokens complete the text."""
        ...


@dataclass(frozen=True, kw_only=True)
class AnswerEnd:
    """What ends an answer, and what stands behind it."""

    tokens: tuple[int, ...]
    """Any of them ends an answer and is no part of it."""
    pad: int
    """Fills rows that ended early."""
    text: StopText | None = None
    """Ends an answer too, `min_new_tokens` or not; it is a part of it."""


def generate(
    model: PreTrainedModel,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | Int[Tensor, "B T"],
    decoding: Decoding,
    end: AnswerEnd,
    *,
    positions: Int[Tensor, "B T"] | None = None,
) -> list[list[int]]:
    """The new tokens of each row, cut before its end token, or behind the text that ends it.

    Args:
        model: a transformers causal or encoder-decoder language model in eval mode.
        embeds: of the prompt (causal) or of the encoder's input; causal rows must be padded on the left.
        mask: non-zero where a token is real.
        decoding: how to search.
        end: each row, and in a beam search each beam, is finished by itself.
        positions: of a causal model's prompt, as in `Batch`; new tokens go on from a row's last one. None counts.
    """
    assert not model.training, "generation in train mode would apply dropout"
    seq2seq = bool(model.config.is_encoder_decoder)
    if not seq2seq and not bool(mask[:, -1].all()):
        raise ValueError("generation needs rows padded on the left, found a row that ends in padding")
    # top_k: transformers' own default is 50, which would cut the nucleus silently.
    search = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=decoding.min_new_tokens or None,
        num_beams=decoding.num_beams,
        do_sample=decoding.top_p is not None,
        top_p=decoding.top_p,
        top_k=0 if decoding.top_p is not None else None,
        temperature=decoding.temperature if decoding.top_p is not None else None,
        length_penalty=decoding.length_penalty,
        eos_token_id=sorted(end.tokens),
        pad_token_id=end.pad,
        use_cache=True,
    )
    # Not as a setting: transformers 5.23 would spare as many of the new tokens as a row has padding on its left.
    penalty = LogitsProcessorList()
    if decoding.repetition_penalty != 1:
        penalty.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
    # Left out, transformers counts the tokens; stated, it adds one to a row's last position with each step.
    stated = {} if seq2seq or positions is None else {"position_ids": positions}
    texts = StoppingCriteriaList([] if end.text is None else [TextEnd(end.text, start=int(seq2seq))])
    seed = decoding.seed if search.do_sample else None
    with _only(model, search), _seeded(seed, embeds.device):
        written = model.generate(  # pyright: ignore[reportCallIssue]
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            generation_config=search,
            logits_processor=penalty,
            stopping_criteria=texts,
            synced_gpus=is_sharded(model),
            **stated,
        )
    assert isinstance(written, Tensor)
    rows = written[:, 1:].tolist() if seq2seq else written.tolist()
    return [_cut(row, end) for row in rows]


class TextEnd(StoppingCriteria):
    """Ends each row by itself when its last tokens complete a text.

    Args:
        stop: The text.
        start: Tokens before the new ones: the start token of an encoder-decoder.
    """

    def __init__(self, stop: StopText, start: int) -> None:
        self.stop, self.start = stop, start

    def __call__(self, input_ids: Int[Tensor, "R S"], scores: object, **kwargs: object) -> Bool[Tensor, " R"]:
        last = input_ids[:, max(self.start, input_ids.shape[1] - self.stop.window) :].tolist()
        return torch.tensor([self.stop(row) for row in last], dtype=torch.bool, device=input_ids.device)


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether parameters are spread over ranks, which must then all step until the last answer is done."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _cut(row: list[int], end: AnswerEnd) -> list[int]:
    for i, token in enumerate(row):
        if token in end.tokens:
            return row[:i]
        if end.text is not None and end.text(row[: i + 1]):
            return row[: i + 1]
    return row


@contextmanager
def _only(model: PreTrainedModel, search: GenerationConfig):
    """Hides the model's published settings, from which transformers would fill every unset field of `search`."""
    own = model.generation_config
    assert own is not None
    search.decoder_start_token_id = own.decoder_start_token_id
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _seeded(seed: int | None, device: torch.device):
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

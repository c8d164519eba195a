"""How answers are written, and what ends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


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

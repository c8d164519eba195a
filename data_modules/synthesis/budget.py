"""What calls may cost: counted before they are sent, so that no call in flight exceeds a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from data_modules.synthesis.request import Answer, Request

BYTES = 4
"""Of UTF-8 text, about what a token of English has."""
MESSAGE_TOKENS = 16
"""At most what a message's role and separators count for; OpenAI's count for 3 or 4."""


@dataclass(frozen=True)
class Tokens:
    """Read and written by the model."""

    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens, in any currency."""

    prompt: float
    completion: float

    def of(self, tokens: Tokens) -> float:
        """Money for `tokens`."""
        return (tokens.prompt * self.prompt + tokens.completion * self.completion) / 1e6


@dataclass(kw_only=True)
class Budget:
    """What was spent, what calls in flight may still spend, and the most that both may be.

    Args:
        tokens: Most tokens, prompt and completion together; None for any number.
        money: Most money; needs `prices`.
        prices: None where no money is counted.
        image_tokens: At most what a picture counts for.
    """

    tokens: int | None = None
    money: float | None = None
    prices: Prices | None = None
    image_tokens: int = 1600
    spent: Tokens = Tokens()
    reserved: Tokens = Tokens()
    excess: int = field(default=0, init=False)
    """By how many prompt tokens an endpoint has counted more than was reserved (a system prompt of its own)."""

    def __post_init__(self) -> None:
        if self.money is not None and self.prices is None:
            raise ValueError("--budget-money: found no --prices, expected the money for a million tokens")
        for name, value in (("--budget-tokens", self.tokens), ("--budget-money", self.money)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: found {value}, expected more than 0")

    @property
    def limited(self) -> bool:
        return self.tokens is not None or self.money is not None

    def most(self, request: Request) -> Tokens:
        """An upper bound of what a call costs: no token of a text is shorter than a byte."""
        return Tokens(_prompt(request, 1, self.image_tokens) + self.excess, request.max_tokens)

    def likely(self, request: Request) -> Tokens:
        """About what a call costs; of the answer all that it may have."""
        return Tokens(_prompt(request, BYTES, self.image_tokens), request.max_tokens)

    def fits(self, tokens: Tokens) -> bool:
        """Whether a call of at most so many tokens may be sent beside those in flight."""
        total = self.spent + self.reserved + tokens
        if self.tokens is not None and total.total > self.tokens:
            return False
        return self.money is None or self.prices is None or self.prices.of(total) <= self.money

    def reserve(self, tokens: Tokens) -> None:
        """A call is sent."""
        self.reserved += tokens

    def settle(self, tokens: Tokens, spent: Tokens) -> None:
        """A call for which `tokens` were reserved has ended, and cost `spent`."""
        self.reserved -= tokens
        self.spent += spent
        self.excess += max(0, spent.prompt - tokens.prompt)

    def announce(self, requests: Iterable[Request]) -> str:
        """One sentence before anything is sent: how much, at most how much, and what the budget is."""
        costs = [self.likely(request) for request in requests]
        total = sum(costs, Tokens())
        told = (
            f"{len(costs):,} calls, about {total.prompt:,} tokens to read (one for {BYTES} bytes) and at most"
            f" {total.completion:,} to write"
        )
        if self.prices is not None:
            told += f": {money(self.prices.of(Tokens(total.prompt)))} to {money(self.prices.of(total))} in money"
        told += f"; spent before: {self._told(self.spent)}" if self.spent.total else ""
        limits = [f"{self.tokens:,} tokens"] if self.tokens is not None else []
        limits += [f"{money(self.money)} in money"] if self.money is not None else []
        return f"{told}; budget: {' and '.join(limits) or 'none'}"

    def _told(self, tokens: Tokens) -> str:
        priced = "" if self.prices is None else f" ({money(self.prices.of(tokens))})"
        return f"{tokens.total:,} tokens{priced}"

    def __str__(self) -> str:
        """What was spent."""
        return self._told(self.spent)


def money(amount: float) -> str:
    """Hundredths, or of less than 1 ten-thousandths."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


def used(answer: Answer) -> Tokens:
    """What an answer cost."""
    return Tokens(answer.prompt_tokens, answer.completion_tokens)


def _prompt(request: Request, bytes_a_token: int, image_tokens: int) -> int:
    texts = sum(len(message.text.encode()) for message in request.messages)
    images = sum(len(message.images) for message in request.messages)
    return -(-texts // bytes_a_token) + MESSAGE_TOKENS * (len(request.messages) + 1) + image_tokens * images


def parse_prices(text: str) -> Prices:
    """'2.5,10': money for a million tokens that are read, and that are written.

    Raises:
        ValueError: It is no such pair.
    """
    parts: list[Any] = text.split(",")
    try:
        prompt, completion = map(float, parts)
        if min(prompt, completion) < 0 or not prompt + completion < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--prices: found '{text}', expected two numbers as in 2.5,10: money for a million tokens read and written"
        ) from None
    return Prices(prompt, completion)

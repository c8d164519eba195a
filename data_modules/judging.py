"""A language model's verdicts on texts, asked through the engine of synthesis: its journal, budget and retries.

The folder has the journal; a command that was stopped goes on where it was, and no verdict is paid for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_modules.synthesis.backends.openai_endpoint import OpenAIEndpoint
from data_modules.synthesis.budget import Budget, parse_prices
from data_modules.synthesis.display import bar
from data_modules.synthesis.journal import opened
from data_modules.synthesis.request import Backend, Context, Message, Rejected, Request
from data_modules.synthesis.runner import Content, Limits, run
from lightning_mllm.contracts import Turn


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a judge.

    Args:
        prompts: id and text of each user message.
        system: the system message of all of them; empty for none.
        check: raises ValueError for a verdict that cannot be read.
        max_tokens, temperature: as in `Request`.
    """

    prompts: Sequence[tuple[str, str]]
    system: str
    check: Callable[[str], object]
    max_tokens: int
    temperature: float

    def requests(self) -> list[Request]:
        """One for each prompt."""
        system = (Message("system", self.system),) if self.system else ()
        nothing = Context(captions=(), boxes=(), width=0, height=0)
        return [
            Request(
                id=id,
                kind="verdict",
                image="",
                messages=(*system, Message("user", text)),
                context=nothing,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
            )
            for id, text in self.prompts
        ]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one prompt."""

    id: str
    text: str
    """Empty where there is none that can be read."""
    model: str
    """As the endpoint names what answered."""
    reason: str
    """Why there is none."""


def endpoint(model: str, base_url: str | None, key_env: str | None, timeout: float) -> Backend:
    """An OpenAI-compatible endpoint; ValueError as `OpenAIEndpoint`."""
    return OpenAIEndpoint(model, base_url, key_env, timeout)


def limits_of(concurrency: int, retries: int, tokens: int | None, money: float | None, prices: str | None) -> dict:
    """`limits` and `budget` of `ask`; ValueError for what goes with no plan.

    Args:
        concurrency: calls in flight.
        retries: further calls where one brought no answer.
        tokens: the most that calls may read and write; None for any number.
        money: the most that they may cost, by `prices`.
        prices: '2.5,10': money for a million tokens read and written.
    """
    budget = Budget(tokens=tokens, money=money, prices=parse_prices(prices) if prices else None)
    return {"limits": Limits(concurrency=concurrency, retries=retries), "budget": budget}


def ask(
    asked: Asked,
    backend: Backend,
    folder: Path,
    plan: dict[str, str],
    *,
    limits: Limits,
    budget: Budget,
    again: bool = False,
) -> tuple[list[Verdict], str]:
    """The verdicts on all prompts, in their order, and why it ended before all were asked for; empty where it did not.

    Args:
        folder: where the journal is kept.
        plan: what the journal is of (the model, the rules), by name; another plan needs another folder.
        limits, budget: as `limits_of` makes them.
        again: whether calls that were refused are sent anew.

    Raises:
        ValueError: the folder holds another plan, or another process writes it.
    """
    requests = asked.requests()

    def check(request: Request, text: str) -> list[Turn]:
        try:
            asked.check(text)
        except ValueError as error:
            raise Rejected("format", str(error)) from None
        return [Turn(role="assistant", text=text)]

    with opened(folder, plan, requests) as journal, bar() as display:
        if again:
            journal.again("refused")
        display.say(budget.announce(requests))
        stopped = run(journal, Content(requests, check, _ask_again), backend, limits, budget, display)
        verdicts = []
        for outcome in journal.outcomes(requests):
            last = outcome.last
            good = last.state == "accepted" and last.answer is not None
            text, model = (last.answer.text, last.answer.model) if good and last.answer else ("", "")
            verdicts.append(Verdict(id=outcome.request.id, text=text, model=model, reason=_why(good, last.reason)))
    return verdicts, stopped or ""


def _why(good: bool, reason: str) -> str:
    return "" if good else reason or "it was not asked for"


def _ask_again(request: Request, text: str, why: Rejected) -> tuple[Message, ...]:
    """The messages of a request whose verdict could not be read, and what was wrong about it."""
    again = f"Your verdict cannot be read: {why.sentence}. Give it again, in the form that was asked for."
    return (*request.messages, Message("assistant", text), Message("user", again))

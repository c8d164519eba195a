"""What calls may cost is told before they are sent, and is never more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_modules.synthesis.budget import Budget, Prices, Tokens, parse_prices
from data_modules.synthesis.request import Message
from lightning_mllm.contracts import ImageFile
from tests.data_modules.synthesis.faulty_server import requests

REQUEST = replace(requests(1)[0], messages=(Message("user", "caf\u00e9 " * 100),), max_tokens=200)
BYTES = 600


def test_no_tokenizer_makes_more_tokens_than_bytes() -> None:
    budget = Budget(image_tokens=1000)
    assert budget.most(REQUEST) == Tokens(BYTES + 32, 200)
    assert budget.likely(REQUEST) == Tokens(BYTES // 4 + 32, 200)
    picture = replace(REQUEST, messages=(Message("user", "", (ImageFile(Path("a.jpg")),) * 2),))
    assert budget.most(picture).prompt == 2032


@pytest.mark.parametrize(
    "budget",
    [
        Budget(tokens=1000),
        Budget(money=6.0, prices=Prices(5000, 10000)),
        Budget(tokens=1000, money=9e9, prices=Prices(1, 1)),
    ],
)
def test_calls_in_flight_and_ended_ones_count(budget: Budget) -> None:
    call = Tokens(400, 100)
    assert budget.fits(call)
    budget.reserve(call)
    assert budget.fits(call)
    budget.reserve(call)
    assert not budget.fits(Tokens(1, 0))
    budget.settle(call, Tokens(200, 50))
    assert budget.fits(Tokens(200, 50)) and not budget.fits(call)
    assert (budget.spent, budget.reserved) == (Tokens(200, 50), call)


def test_an_endpoint_that_counts_more_is_believed() -> None:
    budget = Budget(tokens=10**6)
    reserved = budget.most(REQUEST)
    budget.reserve(reserved)
    budget.settle(reserved, Tokens(reserved.prompt + 70, 10))
    assert budget.most(REQUEST).prompt == reserved.prompt + 70


def test_the_announcement_names_calls_tokens_money_and_budget() -> None:
    budget = Budget(tokens=5000, money=2.5, prices=Prices(100, 200), spent=Tokens(10, 0))
    assert budget.announce([REQUEST] * 10) == (
        "10 calls, about 1,820 tokens to read (one for 4 bytes) and at most 2,000 to write: 0.1820 to 0.5820 in money;"
        " spent before: 10 tokens (0.0010); budget: 5,000 tokens and 2.50 in money"
    )
    assert Budget().announce([]).endswith("budget: none")


@pytest.mark.parametrize(("text", "found"), [("2.5,10", Prices(2.5, 10)), ("0,0", Prices(0, 0))])
def test_prices_are_two_numbers(text: str, found: Prices) -> None:
    assert parse_prices(text) == found


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "-1,2", "nan,1", "inf,1"])
def test_other_prices_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"--prices: found '{text}', expected two numbers"):
        parse_prices(text)


def test_money_needs_prices() -> None:
    with pytest.raises(ValueError, match="--budget-money: found no --prices"):
        Budget(money=1.0)
    with pytest.raises(ValueError, match="--budget-tokens: found 0, expected more than 0"):
        Budget(tokens=0)

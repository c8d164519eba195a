"""Greedy answers are those of transformers' `generate`, token for token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.language import generation, greedy
from lightning_mllm.language.decoding import AnswerEnd, Decoding
from lightning_mllm.language.generation import generate
from lightning_mllm.language.prompts import reads_prompts
from tests.language.experts import CONFIGS, small
from tests.language.experts import plain_of as without_experts
from tests.language.models import OPT, QWEN, perturbed
from tests.language.models import small as small_plain

VOCAB, PAD = 64, 0
KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "opt": lambda: small_plain("opt"),
    **{kind: lambda kind=kind: perturbed(without_experts(small(kind), CONFIGS[kind])) for kind in CONFIGS},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalty": {"repetition_penalty": 1.5},
    "least": {"min_new_tokens": 5},
}


def prompts(model: PreTrainedModel, *lengths: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, VOCAB, (len(lengths), max(lengths)))
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - n for n in lengths])
    return 4 * model.get_input_embeddings()(tokens).detach(), mask


def by_transformers(monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any) -> list[list[int]]:
    with monkeypatch.context() as patch:
        patch.setattr(generation, "reads_prompts", lambda model: False)
        return generate(*args, **kwargs)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KINDS[kind]()
    embeds, mask = prompts(model, 3, 9, 6, 1, 9, 4, 2, 7)
    free = generate(model, embeds, mask, Decoding(max_new_tokens=1), AnswerEnd(tokens=(VOCAB,), pad=PAD))
    # Some rows end at once, others later or never.
    end = AnswerEnd(tokens=(free[1][0], *range(40, 52), VOCAB), pad=PAD)
    how = Decoding(max_new_tokens=12, **settings)
    found = generate(model, embeds, mask, how, end)
    assert found == by_transformers(monkeypatch, model, embeds, mask, how, end)
    assert len({*map(len, found)}) > 1


@pytest.mark.parametrize("lengths", [(1,), (5,), (1, 1, 1), (6, 6, 6)], ids=str)
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_few_rows_short_prompts_and_rows_that_all_end_at_once(
    kind: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KINDS[kind]()
    embeds, mask = prompts(model, *lengths)
    firsts = generate(model, embeds, mask, Decoding(max_new_tokens=1), AnswerEnd(tokens=(VOCAB,), pad=PAD))
    for tokens, settings in (
        ((VOCAB,), {}),
        (tuple(row[0] for row in firsts), {}),
        (tuple(range(60)), SETTINGS["least"]),
    ):
        how, end = Decoding(max_new_tokens=7, **settings), AnswerEnd(tokens=tokens, pad=PAD)
        found = generate(model, embeds, mask, how, end)
        assert found == by_transformers(monkeypatch, model, embeds, mask, how, end)
        assert all(not row for row in found) is (tokens != (VOCAB,) and not settings)


@dataclass(frozen=True)
class Ends:
    """A text that any of some tokens completes, and what it was shown last."""

    tokens: tuple[int, ...]
    window: int = 2
    shown: set[int] = field(default_factory=set)

    def __call__(self, tokens: Sequence[int]) -> bool:
        self.shown.add(tokens[-1])
        return any(token in self.tokens for token in tokens[-self.window :])


def test_a_token_that_is_an_end_and_completes_the_text_is_no_part_of_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OPT's line break is both for BLIP-2; other texts are a part."""
    model = KINDS["opt"]()
    embeds, mask = prompts(model, 3, 9, 6, 1, 9, 4, 2, 7)
    how, free = Decoding(max_new_tokens=8), AnswerEnd(tokens=(VOCAB,), pad=PAD)
    written = generate(model, embeds, mask, how, free)
    both, text = written[0][2], written[1][1]
    end = AnswerEnd(tokens=(both,), pad=PAD, text=(shown := Ends((both, text))))
    found = generate(model, embeds, mask, how, end)
    assert both in shown.shown, "a stream counts it"
    assert found == by_transformers(monkeypatch, model, embeds, mask, how, end)
    assert all(both not in row for row in found) and any(text in row[-1:] for row in found)


def test_hosts_of_accelerators_look_at_tokens_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    model = KINDS["llama"]()
    embeds, mask = prompts(model, 3, 9, 6, 1, 9, 4, 2, 7)
    end = AnswerEnd(tokens=tuple(range(20)), pad=PAD)
    for most in (1, 3, 7, 12):
        how = Decoding(max_new_tokens=most)
        each = generate(model, embeds, mask, how, end)
        for every in (2, 3, 8):
            monkeypatch.setattr(greedy, "look_every", lambda *_, every=every: every)
            assert generate(model, embeds, mask, how, end) == each, (most, every)
        monkeypatch.undo()


def test_the_host_looks_at_every_token_only_where_it_must() -> None:
    cuda, text = torch.device("cuda"), AnswerEnd(tokens=(1,), pad=0, text=lambda tokens: False)  # pyright: ignore
    plain = AnswerEnd(tokens=(1,), pad=0)
    assert greedy.look_every(plain, False, cuda) == greedy.LOOK_EVERY > 1
    assert greedy.look_every(plain, True, cuda) == greedy.look_every(text, False, cuda) == 1
    assert greedy.look_every(plain, False, torch.device("cpu")) == 1


def test_rows_that_have_ended_leave_the_batch() -> None:
    model = KINDS["llama"]()
    embeds, mask = prompts(model, 3, 9, 6, 1, 9, 4, 2, 7)
    rows: list[tuple[int, ...]] = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    found = generate(model, embeds, mask, Decoding(max_new_tokens=12), AnswerEnd(tokens=tuple(range(20)), pad=PAD))
    lengths = [len(row) for row in found]
    assert rows[0] == (8, 9) and {width for _, width in rows[1:]} == {1}
    assert len(rows) == max(lengths) + (max(lengths) < 12)
    for step, (count, _) in enumerate(rows[1:], 1):
        assert sum(length >= step for length in lengths) <= count <= 8
    assert rows[-1][0] < 8


def test_no_mask_of_all_pairs_is_made() -> None:
    model = KINDS["llama"]()
    embeds, mask = prompts(model, 3, 9)
    masks: list[Any] = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    generate(model, embeds, mask, Decoding(max_new_tokens=3), AnswerEnd(tokens=(VOCAB,), pad=PAD))
    assert masks[0] is None and [tuple(each.shape) for each in masks[1:]] == [(2, 1, 1, 10), (2, 1, 1, 11)]
    masks.clear()
    generate(model, embeds[1:], mask[1:], Decoding(max_new_tokens=3), AnswerEnd(tokens=(VOCAB,), pad=PAD))
    assert masks == [None] * 3


def test_models_that_make_their_own_masks_are_left_to_transformers() -> None:
    model = KINDS["mistral"]()
    assert reads_prompts(model)
    model.config.sliding_window = 4
    assert not reads_prompts(model)
    for config, expected in ((QWEN, True), (OPT, True)):
        other = small_plain(config["model_type"])
        assert reads_prompts(other) is expected
        other.config._attn_implementation = "eager"
        assert not reads_prompts(other)

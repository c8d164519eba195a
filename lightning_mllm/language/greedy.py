"""Greedy answers of a causal model: the tokens of transformers' `generate`, without what it does around each of them.

    prompts --one pass--> scores f[B, W] --likeliest--> tokens i[B] --one pass, one token a row--> scores ...

A row that has ended leaves the batch. On an accelerator the host looks at the tokens only every few of them.

Legend: B rows, D width, W words of the vocabulary.
"""

from __future__ import annotations

import torch
import torch.distributed
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor

from lightning_mllm.language.decoding import AnswerEnd, Decoding
from lightning_mllm.language.lm_loss import head
from lightning_mllm.language.prompts import Prompts, is_sharded
from lightning_mllm.language.shared_prefix import SharedPrefix

LOOK_EVERY = 8
"""Tokens after which the host of an accelerator looks for ends; a text that ends answers is looked for at each."""


def greedy(
    model: PreTrainedModel,
    embeds: Float[Tensor, "B T D"],
    mask: Bool[Tensor, "B T"] | Int[Tensor, "B T"],
    decoding: Decoding,
    end: AnswerEnd,
    *,
    positions: Int[Tensor, "B T"] | None = None,
    kinds: UInt8[Tensor, "B T"] | None = None,
    shared: SharedPrefix | None = None,
) -> list[list[int]]:
    """The new tokens of each row, cut before its end token, or behind the text that ends it.

    Where parameters are sharded, every rank goes on until the last row of all ranks has ended.

    Args:
        model: One that `reads_prompts`.
        embeds, mask, positions, kinds, shared: As in `Prompts`.
        decoding: Without beams and sampling.
        end: What ends a row.
    """
    most, device, synced = decoding.max_new_tokens, embeds.device, is_sharded(model)
    prompts = Prompts(model, embeds, mask, most, positions=positions, kinds=kinds, shared=shared)
    words = model.get_input_embeddings()
    choose = _Choice(model, decoding, end, device)
    every = look_every(end, synced, device)
    answers = _Answers(len(embeds), end)
    tokens = torch.empty(len(embeds), most, dtype=torch.long, device=device)
    hidden, seen = prompts.hidden, 0
    for step in range(most):
        tokens[:, step] = choose(hidden, tokens[:, :step])
        if (step + 1) % every == 0 or step + 1 == most:
            answers.add(tokens[:, seen : step + 1].tolist())
            seen, going = step + 1, bool(answers.open) and step + 1 < most
            if not (_anywhere(going, device) if synced else going):
                return answers.found
            if (kept := answers.dropped()) is not None:
                tokens = tokens[prompts.keep(kept)]
        if step + 1 < most:
            hidden = prompts.step(words(tokens[:, step]), step)
    # Here all is written, and other ranks need this one's passes.
    prompts.behind(words(tokens[:, -1:]))
    while _anywhere(False, device):
        prompts.behind(words(tokens[:, -1:]))
    return answers.found


def look_every(end: AnswerEnd, synced: bool, device: torch.device) -> int:
    """After how many tokens the host looks for ends."""
    return 1 if synced or end.text is not None or device.type == "cpu" else LOOK_EVERY


class _Choice:
    """The likeliest token of each row, by the rules of `Decoding`."""

    def __init__(self, model: PreTrainedModel, decoding: Decoding, end: AnswerEnd, device: torch.device) -> None:
        self.head, self.least = head(model), decoding.min_new_tokens
        known = [token for token in end.tokens if token < model.config.vocab_size]
        self.ends = torch.tensor(known, dtype=torch.long, device=device)
        once = decoding.repetition_penalty == 1
        self.penalty = None if once else RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty)

    def __call__(self, hidden: Float[Tensor, "B D"], written: Int[Tensor, "B _"]) -> Int[Tensor, " B"]:
        scores = self.head(hidden).float()
        if self.penalty is not None:
            scores = self.penalty(written, scores)  # pyright: ignore[reportArgumentType]
        if written.shape[1] < self.least:
            scores = scores.index_fill(1, self.ends, -torch.inf)
        return scores.argmax(1)


class _Answers:
    """What is known on the host."""

    def __init__(self, count: int, end: AnswerEnd) -> None:
        self.end = end
        self.found: list[list[int]] = [[] for _ in range(count)]
        """All answers, without end tokens."""
        self.lines = list(range(count))
        """The answer of each row of the batch, some of which may have ended."""
        self.open = set(self.lines)

    def add(self, new: list[list[int]]) -> None:
        """The next tokens of each row of the batch."""
        for number, tokens in zip(self.lines, new, strict=True):
            for token in tokens if number in self.open else ():
                row = self.found[number]
                row.append(token)
                # A stream counts by its text the tokens of an answer, of which the end token is one.
                ended = self.end.text is not None and self.end.text(row[-self.end.text.window :])
                if token in self.end.tokens:
                    ended = True
                    row.pop()
                if ended:
                    self.open.discard(number)
                    break

    def dropped(self) -> list[int] | None:
        """Rows of the batch that go on, where others have ended; None where none leaves the batch."""
        kept = [row for row, number in enumerate(self.lines) if number in self.open]
        # A copy of the cache costs about a pass; a rank without an open row goes on with any.
        if not kept or len(kept) > len(self.lines) * 7 // 8:
            return None
        self.lines = [self.lines[row] for row in kept]
        return kept


def _anywhere(here: bool, device: torch.device) -> bool:
    """Whether it is so on any rank."""
    flag = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)

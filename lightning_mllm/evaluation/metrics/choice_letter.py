"""Multiple choice that is answered with a letter: SEED-Bench as LLaVA asks it, and MMBench with its CircularEval.

MMBench (Liu et al. 2023, arXiv 2307.06281, sec. 4) asks each question once for each of its choices, which are moved on
by one place; it is right where every pass is (CircularEval). Letters are read from answers by the released rules
(open-compass/MMBench, `can_infer`); what these cannot read, the authors give to ChatGPT and we count as wrong.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_mllm.evaluation.metrics.text import Asked, TextMetric, ratio

LETTERS = "ABCDE"
AROUND = (
    *(("", mark) for mark in (".", ",", ":", ")", ").")),
    *(("(", mark) for mark in (")", ").")),
    *((":", mark) for mark in ("", ",", ".", ")", ").")),
)
"""What may stand before and behind a letter in a word, in the order in which the released code tries them."""
PASS = 1_000_000
"""The index of a question in pass k is k times this more than in its first pass."""

_CHOICE = re.compile(rf"^([{LETTERS}])\. (.+)$", re.MULTILINE)


def choices_of(prompt: str) -> dict[str, str]:
    """The choices that a prompt lists, each on a line of its own: 'A. a dog'."""
    return dict(_CHOICE.findall(prompt))


def chosen_letter(answer: str, choices: Mapping[str, str]) -> str:
    """The letter that an answer names, or that of the only choice whose text it has; empty where it is neither."""
    words = answer.split()
    alone = [letter for letter in LETTERS if letter in words]
    # "A" in a longer answer may be the article.
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    for before, behind in AROUND:
        marked = [letter for letter in LETTERS if f"{before}{letter}{behind}" in words]
        if len(marked) == 1:
            return marked[0]
    told = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
    return told[0] if len(told) == 1 else ""


def _check_letter(name: str, references: Sequence[str]) -> None:
    if len(references) != 1 or references[0] not in LETTERS or len(references[0]) != 1:
        raise ValueError(f"{name}: found the references {list(references)}, expected one letter of {LETTERS}")


class SeedBenchAccuracy(TextMetric):
    """`seed_accuracy`: how many answers are the right letter and nothing else (released LLaVA,
    scripts/convert_seed_for_submission.py)."""

    names = ("seed_accuracy",)
    by_kind = "seed_accuracy"

    def check(self, references: Sequence[str]) -> None:
        _check_letter("seed_bench", references)

    def statistics(self) -> np.ndarray:
        return np.array(
            [[answer.strip() == letter] for answer, (letter,) in zip(self.answers, self.references, strict=True)],
            dtype=float,
        )


class MmBenchScores(TextMetric):
    """`mmbench_circular`: how many questions are right in every pass; `mmbench_first`: in their first pass alone.

    A sample's id is its index in the published file, from which its question and pass are told; its choices are read
    from its prompt.
    """

    names = ("mmbench_circular", "mmbench_first")
    by_kind = "mmbench_circular"

    def check(self, references: Sequence[str]) -> None:
        _check_letter("mmbench", references)

    def check_questions(self, asked: Sequence[Asked]) -> None:
        passes: dict[int, list[Asked]] = defaultdict(list)
        for each in asked:
            passes[_index(each) % PASS].append(each)
        circular = any(len(each) > 1 for each in passes.values())
        for index, each in passes.items():
            expected = len(choices_of(each[0].prompt)) if circular else 1
            # A prompt in other words does not tell how many choices there are.
            if expected and len(each) != expected:
                raise ValueError(
                    f"mmbench: found {len(each)} passes of question {index}, expected {expected}, one for each choice;"
                    " a limit cuts them"
                )

    def statistics(self) -> np.ndarray:
        """f64[N, 4]: questions that are right in all passes, questions, right first passes, first passes; a question
        counts at the first of its rows."""
        right = [
            chosen_letter(answer, choices_of(question.prompt)) == letter
            for answer, (letter,), question in zip(self.answers, self.references, self.asked, strict=True)
        ]
        of_question: dict[int, list[bool]] = defaultdict(list)
        for question, each in zip(self.asked, right, strict=True):
            of_question[_index(question) % PASS].append(each)
        rows = np.zeros((len(right), 4))
        for row, question, each in zip(rows, self.asked, right, strict=True):
            passes = of_question.pop(_index(question) % PASS, None)
            first = _index(question) < PASS
            row[:] = [passes is not None and all(passes), passes is not None, first and each, first]
        return rows

    def values(self, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return np.stack([ratio(sums[..., 0], sums[..., 1]), ratio(sums[..., 2], sums[..., 3])], axis=-1)


def _index(question: Asked) -> int:
    if not question.id.isdecimal():
        raise ValueError(f"mmbench: found the id '{question.id}', expected the index of a question, a number")
    return int(question.id)

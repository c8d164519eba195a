"""VQA accuracy: how many of ten people gave the answer (Antol et al. 2015; Goyal et al. 2017, VQA v2).

Texts are normalised as in the published evaluation (GT-Vision-Lab/VQA, vqaEval.py), its quirks included: `somebody'd`
becomes `somebodyd`; a full stop goes unless a digit follows, wherever it stands. When they are is a rule of its own:

* always (`vqa`): the answer and every reference, as LLaVA's TextVQA evaluation (llava/eval/m4c_evaluator.py,
  TextVQAAccuracyEvaluator), but for the step that comes first there: commas and question marks go, and `'s` is set off;
* only where the ten people disagree (`vqa_official`), as vqaEval.py does: where all agree, answers are compared as
  written, so that "Yes" is wrong where ten people said "yes".

LAVIS (lavis/common/vqa_tools/vqa_eval.py, `evaluate`) and SPHINX (LLaMA2-Accessory,
accessory/eval_mm/utils/vqa_eval.py, `evaluate`) have a third rule, which is not here: the answer is always normalised,
references lose punctuation alone, and only where people disagree. `vqa` gives the same score where every reference is
its own normalised text. Where one is not it may give more: "two" is right here if ten people said "two", and wrong
there, where "2" is compared with "two".

LAVIS scores one reference by the same rule (lavis/tasks/vqa.py, GQATask): equal or not, both normalised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np

from lightning_mllm.evaluation.metrics.text import TextMetric

ARTICLES = frozenset(("a", "an", "the"))
_COUNTED = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED.split())}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_WITH_APOSTROPHE = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# Each word is recognised with any one of its apostrophes missing.
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _WITH_APOSTROPHE.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
"""vqaEval.py passes re.UNICODE, which is 32, where `re.sub` takes the number of replacements."""


@lru_cache(maxsize=1 << 16)  # few texts are the answers to most questions
def normalise(answer: str) -> str:
    """An answer without punctuation, articles and capitals; number words as digits, contractions as one spelling."""
    text = _one_line(answer)
    drop_all = bool(_COMMA_IN_NUMBER.search(text))
    out = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or drop_all else " ")
    out = _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS)
    numbered = (NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def accuracy(answer: str, references: Sequence[str], *, always: bool = True) -> float:
    """The accuracy of one answer.

    Ten references: the mean, over leaving each person out, of min(others who agree / 3, 1). One reference: whether both
    are the same once normalised.

    Args:
        always: Whether texts are normalised too where all ten people agree.
    """
    if len(references) == 1:
        return float(normalise(answer) == normalise(references[0]))
    answer, people = _one_line(answer), [_one_line(text) for text in references]
    if always or len(set(people)) > 1:
        answer, people = normalise(answer), [normalise(text) for text in people]
    agree = Counter(people)[answer]
    total = len(people)
    return (agree * min((agree - 1) / 3, 1) + (total - agree) * min(agree / 3, 1)) / total


class VqaAccuracy(TextMetric):
    """`vqa_accuracy`: the mean accuracy in [0, 1]; each sample has ten references, or one."""

    names = ("vqa_accuracy",)
    always: ClassVar[bool] = True
    """As in `accuracy`."""

    def check(self, references: Sequence[str]) -> None:
        if len(references) not in (1, 10):
            raise ValueError(
                f"{self.names[0]}: found a sample with {len(references)} references, expected 10 people's answers or 1 "
                "(for a list of accepted answers use the task 'exact')"
            )

    def statistics(self) -> np.ndarray:
        rows = zip(self.answers, self.references, strict=True)
        return np.array([[accuracy(answer, people, always=self.always)] for answer, people in rows])


class OfficialVqaAccuracy(VqaAccuracy):
    """`vqa_accuracy_official`: the same by the published script, which normalises only where people disagree."""

    names = ("vqa_accuracy_official",)
    always: ClassVar[bool] = False


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()

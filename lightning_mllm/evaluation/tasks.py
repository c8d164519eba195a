"""The tasks that a set can be scored by, and every score that they give: the one table of names, labels and units."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from lightning_mllm.evaluation.metrics import (
    Anls,
    AnswerWords,
    Bleu,
    BoxAccuracy,
    Choice,
    CiderD,
    DetectionScores,
    ExactMatch,
    IvqaAccuracy,
    Loss,
    MmBenchScores,
    MmeScores,
    OfficialVqaAccuracy,
    Perplexity,
    PopeScores,
    ReciprocalRank,
    RelaxedAccuracy,
    RocAuc,
    RougeL,
    SeedBenchAccuracy,
    SphinxExactMatch,
    VqaAccuracy,
)


class ScoreInfo(NamedTuple):
    """One score as a report shows it."""

    name: str
    """As in `test.json`, before the suffix of the set's part."""
    label: str
    headline: bool = False
    """Whether it has a card at the top of a report, and a curve where it is validated."""
    higher_is_better: bool | None = True
    """None: neither end is better."""
    unit: str = ""
    """Empty for a share from 0 to 1 and for what has no unit."""
    digits: int = 3
    """Behind the decimal point."""


class Task(NamedTuple):
    """What is asked of a net."""

    title: str
    """Over its examples in a report."""
    metrics: tuple[type, ...]
    """Subclasses of SampleMetric that score its answers, in the order of `scores`; none for retrieval, which is scored
    by evaluation/retrieval.py."""
    scores: tuple[ScoreInfo, ...]
    """The first is the score of single answers, where it is a mean over them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its scores."""
        return tuple(score.name for score in self.scores)


TASKS: dict[str, Task] = {
    "vqa": Task("Questions", (VqaAccuracy,), (ScoreInfo("vqa_accuracy", "VQA accuracy", True),)),
    "vqa_official": Task(
        "Questions",
        (OfficialVqaAccuracy,),
        (ScoreInfo("vqa_accuracy_official", "VQA accuracy (official script)", True),),
    ),
    "ivqa": Task("Questions about videos", (IvqaAccuracy,), (ScoreInfo("ivqa_accuracy", "iVQA accuracy", True),)),
    "caption": Task(
        "Captions",
        (CiderD, Bleu, RougeL),
        (
            ScoreInfo("cider", "CIDEr-D", True),
            ScoreInfo("bleu_1", "BLEU-1"),
            ScoreInfo("bleu_2", "BLEU-2"),
            ScoreInfo("bleu_3", "BLEU-3"),
            ScoreInfo("bleu_4", "BLEU-4"),
            ScoreInfo("rouge_l", "ROUGE-L"),
        ),
    ),
    "exact": Task("Questions", (ExactMatch,), (ScoreInfo("exact_match", "Exact match", True),)),
    "exact_sphinx": Task(
        "Questions", (SphinxExactMatch,), (ScoreInfo("exact_match_sphinx", "Exact match (as SPHINX)", True),)
    ),
    "grounding": Task(
        "Objects located",
        (BoxAccuracy,),
        (
            ScoreInfo("box_accuracy", "Box accuracy (IoU 0.5)", True),
            ScoreInfo("box_malformed", "Malformed boxes", higher_is_better=False),
        ),
    ),
    "detection": Task(
        "Objects detected",
        (DetectionScores,),
        (
            ScoreInfo("detection_f1", "Detection F1 (IoU 0.5)", True),
            ScoreInfo("detection_precision", "Detection precision"),
            ScoreInfo("detection_recall", "Detection recall"),
            ScoreInfo("detection_malformed", "Malformed detections", higher_is_better=False),
        ),
    ),
    "chart": Task(
        "Questions about charts",
        (RelaxedAccuracy,),
        (ScoreInfo("relaxed_accuracy", "Relaxed accuracy (5 %)", True),),
    ),
    "document": Task("Questions about documents", (Anls,), (ScoreInfo("anls", "ANLS", True),)),
    "pope": Task(
        "Is it there?",
        (PopeScores,),
        (
            ScoreInfo("pope_f1", "POPE F1", True),
            ScoreInfo("pope_accuracy", "POPE accuracy"),
            ScoreInfo("pope_precision", "POPE precision"),
            ScoreInfo("pope_recall", "POPE recall"),
            ScoreInfo("pope_yes_ratio", "POPE yes ratio", higher_is_better=None),
        ),
    ),
    "mme": Task(
        "Yes or no, in pairs",
        (MmeScores,),
        (
            ScoreInfo("mme_perception", "MME perception", True, unit="of 2,000", digits=1),
            ScoreInfo("mme_cognition", "MME cognition", True, unit="of 800", digits=1),
            ScoreInfo("mme_total", "MME total", unit="of 2,800", digits=1),
        ),
    ),
    "mmbench": Task(
        "Which choice?",
        (MmBenchScores,),
        (
            ScoreInfo("mmbench_circular", "MMBench (CircularEval)", True),
            ScoreInfo("mmbench_first", "MMBench (first pass alone)"),
        ),
    ),
    "seed_bench": Task("Which choice?", (SeedBenchAccuracy,), (ScoreInfo("seed_accuracy", "SEED-Bench", True),)),
    "judged": Task(
        "Open answers, which mllm judge scores",
        (AnswerWords,),
        (ScoreInfo("answer_words", "Not judged; words an answer", True, higher_is_better=None, digits=1),),
    ),
    "choice": Task("Choices", (Choice,), (ScoreInfo("choice_accuracy", "Multiple-choice accuracy", True),)),
    "auc": Task("Yes or no?", (RocAuc,), (ScoreInfo("auc", "Area under the ROC curve", True),)),
    "mrr": Task(
        "Dialogues",
        (ReciprocalRank,),
        (
            ScoreInfo("mrr", "Mean reciprocal rank", True),
            ScoreInfo("recall_1", "Recall at 1"),
            ScoreInfo("recall_5", "Recall at 5"),
            ScoreInfo("recall_10", "Recall at 10"),
            ScoreInfo("mean_rank", "Mean rank", higher_is_better=False, digits=2),
        ),
    ),
    "retrieval": Task(
        "Captions retrieved",
        (),
        (
            ScoreInfo("text_retrieval_r1", "Text retrieval R@1", True),
            ScoreInfo("text_retrieval_r5", "Text retrieval R@5"),
            ScoreInfo("text_retrieval_r10", "Text retrieval R@10"),
            ScoreInfo("image_retrieval_r1", "Image retrieval R@1", True),
            ScoreInfo("image_retrieval_r5", "Image retrieval R@5"),
            ScoreInfo("image_retrieval_r10", "Image retrieval R@10"),
        ),
    ),
    "perplexity": Task(
        "Plain text", (Perplexity,), (ScoreInfo("perplexity", "Perplexity", True, higher_is_better=False),)
    ),
    "loss": Task(
        "Held-out samples",
        (Loss,),
        (ScoreInfo("loss", "Loss", True, higher_is_better=False, unit="nats per token"),),
    ),
}

_SCORES = {score.name: score for task in TASKS.values() for score in task.scores}


def find_score(name: str) -> tuple[ScoreInfo, str] | None:
    """The row of a score and the part of its set, if a task gives it: `vqa_accuracy_novel` is `vqa_accuracy` of the
    part `novel`."""
    known = [each for each in _SCORES if name == each or name.startswith(f"{each}_")]
    if not known:
        return None
    score = _SCORES[max(known, key=len)]
    return score, name[len(score.name) + 1 :]


def check_task(task: str) -> None:
    """Raises ValueError, with the nearest one, if no score knows the task."""
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(f"task is '{task}', expected one of {', '.join(TASKS)}{hint}")

"""What is found out about test sets before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.evaluation import EvaluationSet
from data_modules.module import MultimodalDataModule
from data_modules.sources.source import Wrapped
from lightning_mllm.contracts import Documents, Sample
from lightning_mllm.evaluation.checks import check_sets
from tests.data_modules.files import Echo, Numbers
from tests.toy import Toy, ToyProcessor
from tests.training.data import Squares
from tests.training.runs import settings, trainer


class Changed(Wrapped):
    """Some fields of every sample changed."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(Numbers(6))
        self.changes = changes

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        return replace(self.source.sample(index, generator), **self.changes)


class Lost(Numbers):
    def load(self) -> None:
        raise ValueError("data/lost.json not found")


def data(task: str, source: Any, split: str = "test", **changes: Any) -> MultimodalDataModule:
    sets: Any = {split: {"mine": EvaluationSet(source=source, task=task, **changes)}}
    return MultimodalDataModule(**sets, processor=Echo())


PLAIN = Documents(texts=("Once upon a time.",))
WRONG = [
    ("vqa", Lost(3), "data/lost.json not found"),
    *((task, Numbers(0), "found no sample, expected at least one") for task in ("vqa", "loss", "perplexity")),
    ("captio", Numbers(3), r"task is 'captio', expected one of vqa, .*perplexity.* \(did you mean 'caption'\?\)"),
    ("conversation", Numbers(3), "task is 'conversation', expected one of"),
    ("vqa", Changed(references=("a", "b")), "sample n0: vqa_accuracy: found a sample with 2 references, expected 10"),
    ("caption", Changed(references=()), "sample n0: found no reference, expected at least one"),
    ("ivqa", Numbers(3), "sample n0: ivqa_accuracy: found a sample with 1 references, expected 5"),
    ("grounding", Numbers(3), "sample n0: box_accuracy: found the reference '0', expected a box"),
    ("pope", Numbers(3), "sample n0: pope: found the references .*'yes' or 'no'"),
    ("choice", Numbers(3), "sample n0: choice_accuracy: found no candidates, expected some to rank"),
    (
        "choice",
        Changed(candidates=("x", "y")),
        "sample n0: choice_accuracy: found the references .*expected one of the 2",
    ),
    ("auc", Changed(references=("yes",), candidates=("yes",)), "sample n0: auc: found the candidates .*'yes' and 'no'"),
    ("retrieval", Changed(images=()), "sample n0: found 0 images, expected one to retrieve captions"),
    ("perplexity", Numbers(3), "sample n0: found no document, expected one for the task 'perplexity'"),
    ("exact", Changed(documents=PLAIN), "sample n0: found a document, expected a question for the task 'exact'"),
]


@pytest.mark.parametrize(("task", "source", "sentence"), WRONG, ids=[f"{k} {each[0]}" for k, each in enumerate(WRONG)])
def test_a_set_that_cannot_be_read_or_scored_is_refused_by_name(task: str, source: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^data.test.mine: {sentence}"):
        check_sets(data(task, source))


def test_val_sets_too_and_what_is_right_passes() -> None:
    with pytest.raises(ValueError, match=r"^data\.val\.mine: task is 'exakt'"):
        check_sets(data("exakt", Numbers(3), "val"))
    check_sets(data("vqa", Numbers(6)))
    check_sets(data("perplexity", Changed(documents=PLAIN, references=())))
    check_sets(data("retrieval", Numbers(6)))
    check_sets(data("mrr", Changed(candidates=tuple(map(str, range(6))))))
    check_sets(MultimodalDataModule())
    check_sets(object())


def test_only_what_is_answered_is_looked_at() -> None:
    asked: list[int] = []

    class Counted(Numbers):
        def sample(self, index: int, generator: torch.Generator) -> Sample:
            asked.append(index)
            return super().sample(index, generator)

    check_sets(data("vqa", Counted(50), limit=4))
    assert len(asked) == 4


class Untrained(Toy):
    def configure_model(self) -> None:
        raise AssertionError("built")


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("exakt", "data.test.mine: task is 'exakt'"),
        ("retrieval", "task is 'retrieval' but Untrained has no embed_images"),
    ],
)
def test_training_does_not_begin_before_the_sets_are_known_to_be_right(
    tmp_path: Path, task: str, sentence: str
) -> None:
    wrong = MultimodalDataModule(
        train={"squares": Squares(12)},
        test={"mine": EvaluationSet(source=Squares(4), task=task)},
        global_batch=4,
        micro_batch=4,
        processor=ToyProcessor(),
    )
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path, logger=False, callbacks=[]).fit(Untrained(stage=settings("instruct")), datamodule=wrong)

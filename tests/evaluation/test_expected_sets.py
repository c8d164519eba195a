"""The sets that people expect, from published files to test.json, through the Trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_modules.evaluation import EvaluationSet
from data_modules.module import MultimodalDataModule
from data_modules.sources import MmBench
from lightning_mllm.evaluation.answers import read_answers
from lightning_mllm.evaluation.checks import check_sets
from lightning_mllm.evaluation.report import write_report
from tests.data_modules.files import Echo
from tests.evaluation.expected_sets import take_test, write_mmbench, write_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return take_test(tmp_path_factory.mktemp("expected"))


def test_scores_of_answers_that_are_known(folder: Path) -> None:
    scores = {name: each["value"] for name, each in json.loads((folder / "test.json").read_text())["scores"].items()}
    expected = {
        "pope_accuracy_random": 2 / 3,
        "pope_recall_random": 1,
        "pope_precision_random": 1 / 2,
        "pope_yes_ratio_random": 2 / 3,
        # 200 of existence; of count one of two questions is right: 100 * 1/2 + 100 * 0.
        "mme_perception": 250,
        "mme_cognition": 200,
        "mme_total": 450,
        "mmbench_circular": 1 / 2,
        "mmbench_first": 1,
        "seed_accuracy": 2 / 3,
        "answer_words_mm_vet": 2,
        "answer_words_llava_bench": 4,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert {f"{name}_blind" for name in expected} <= scores.keys(), "each has a blind baseline"


def test_scores_by_kind_of_question(folder: Path) -> None:
    kinds = json.loads((folder / "test.json").read_text())["kinds"]
    found = {
        name: {kind: each["value"] for kind, each in of.items()} for name, of in kinds.items() if "blind" not in name
    }
    assert found == {
        "mme_total": {"existence": 200, "count": 50, "code_reasoning": 200},
        "mmbench_circular": {"perception": 1, "reasoning": 0},
        "seed_accuracy": {"Instances Counting": 0.5, "Scene Understanding": 1},
    }


def test_the_report_tells_them(folder: Path) -> None:
    write_report(folder.parent)
    page = (folder.parent / "report.html").read_text()
    assert page.count('<details class="kinds">') == 3 and "MME total by kind of question" in page
    assert "<td>Instances Counting</td>" in page and "Not judged; words an answer" in page


def test_every_score_is_computed_again_from_the_answers(folder: Path) -> None:
    scores = json.loads((folder / "test.json").read_text())["scores"]
    again = {}
    for answered in read_answers(folder / "test_answers.jsonl").values():
        suffix = f"_{answered.part}" if answered.part else ""
        for metric in answered.metrics(list(answered.samples)):
            again |= {name + suffix: float(value) for name, value in metric.compute().items()}
    assert again == pytest.approx({name: each["value"] for name, each in scores.items() if "_blind" not in name})


def test_what_cannot_be_scored_is_told_before_a_test(tmp_path: Path) -> None:
    sets = write_sets(tmp_path)
    check_sets(MultimodalDataModule(test=sets, processor=Echo()))
    for name, rule in (("mme", "mme: found 1 questions of "), ("mmbench", "mmbench: found . passes of question ")):
        cut = EvaluationSet(source=sets[name].source, task=name, limit=3)
        with pytest.raises(ValueError, match=rf"data.test.cut: {rule}.* a limit cuts"):
            check_sets(MultimodalDataModule(test={"cut": cut}, processor=Echo()))
    kept = EvaluationSet(source=MmBench(write_mmbench(tmp_path / "test.tsv", answered=False)), task="mmbench")
    with pytest.raises(ValueError, match=r"data.test.kept: sample 3: found no reference, expected at least one"):
        check_sets(MultimodalDataModule(test={"kept": kept}, processor=Echo()))

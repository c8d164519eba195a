from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mllm.contracts import Evaluation
from lightning_mllm.evaluation.results import write_results
from lightning_mllm.evaluation.scores import Scores
from tests.evaluation.run_folders import write_run
from tests.evaluation.test_scores import a_batch, answers_to


def test_the_file_holds_scores_counts_examples_and_seconds(tmp_path: Path) -> None:
    write_run(tmp_path)
    found = json.loads((tmp_path / "tune" / "test.json").read_text())
    names = ["vqa_accuracy", "vqa_accuracy_blind", "cider_novel", "bleu_1_novel", "rouge_l_novel"]
    assert set(names) <= set(found["scores"])
    assert found["scores"]["vqa_accuracy"]["value"] == pytest.approx(8 / 12)
    assert set(found["scores"]["vqa_accuracy"]) == {"value", "low", "high"}
    assert found["samples"] == {"vqa": 12, "vqa_blind": 12, "caption_novel": 2}
    assert found["seconds"] == 7.25
    assert len(found["examples"]) == 26
    keys = {"task", "part", "blind", "id", "prompt", "answer", "references", "picture", "score"}
    assert all(set(example) == keys for example in found["examples"])
    assert [path.name for path in (tmp_path / "tune").iterdir() if path.name.startswith(".")] == []


def test_two_sets_of_one_name_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    sets = [Scores(Evaluation(task="vqa")) for _ in range(2)]
    for scores in sets:
        scores.update(a_batch([1]), answers_to([1]))
    with pytest.raises(ValueError, match="two evaluation sets give 'vqa_accuracy'"):
        write_results(tmp_path / "test.json", sets, 1.0)
    assert not list(tmp_path.iterdir())

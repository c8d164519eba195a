from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lightning_mllm.contracts import Evaluation
from lightning_mllm.evaluation.bootstrap import interval
from lightning_mllm.evaluation.results import write_results
from lightning_mllm.evaluation.scores import Scores
from tests.evaluation.run_folders import write_branches, write_run
from tests.evaluation.test_scores import a_batch, answers_to


def test_the_file_holds_scores_counts_examples_and_seconds(tmp_path: Path) -> None:
    write_run(tmp_path)
    found = json.loads((tmp_path / "tune" / "test.json").read_text())
    names = ["vqa_accuracy", "vqa_accuracy_blind", "cider_novel", "bleu_1_novel", "rouge_l_novel"]
    assert set(names) <= set(found["scores"])
    assert found["scores"]["vqa_accuracy"]["value"] == pytest.approx(8 / 12)
    assert set(found["scores"]["vqa_accuracy"]) == {"value", "low", "high"}
    assert found["samples"] == {"vqa": 12, "vqa_blind": 12, "caption_novel": 2}
    assert found["clusters"] == {"vqa": 6, "vqa_blind": 6, "caption_novel": 2}
    assert found["seconds"] == 7.25
    assert len(found["examples"]) == 26
    keys = {"task", "part", "blind", "id", "prompt", "answer", "references", "picture", "score"}
    assert all(set(example) == keys for example in found["examples"])
    assert [path.name for path in (tmp_path / "tune").iterdir() if path.name.startswith(".")] == []


def test_every_answer_stands_beside_the_scores(tmp_path: Path) -> None:
    write_run(tmp_path)
    lines = (tmp_path / "tune" / "test_answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 26
    assert rows[5] == {
        "task": "vqa",
        "part": "",
        "blind": False,
        "id": "q5",
        "cluster": 2,
        "prompt": "<image>\nWhich number is 5?",
        "answer": "5",
        "references": ["5"],
        "score": 1.0,
        "question_type": "number",
        "pictures": ["2.png"],
    }
    assert "question_type" not in rows[24] and "pictures" not in rows[24], "only where the data say so"
    assert [row["score"] for row in rows[12:24]] == [float(i == 3) for i in range(12)], "blind ones too"
    # Enough to draw the interval again, and to compare two runs.
    clusters = np.array([row["cluster"] for row in rows[:12]])
    found = json.loads((tmp_path / "tune" / "test.json").read_text())["scores"]["vqa_accuracy"]
    assert asdict(interval([row["score"] for row in rows[:12]], clusters)) == pytest.approx(found)


def test_closed_sets_and_retrieval_keep_what_they_ranked(tmp_path: Path) -> None:
    write_branches(tmp_path)
    texts = (tmp_path / "say_opt" / "test_answers.jsonl").read_text().splitlines()
    choice = next(row for row in map(json.loads, texts) if row["task"] == "choice")
    assert choice["answer"] == choice["candidates"][choice["likelihoods"].index(max(choice["likelihoods"]))]
    found = [json.loads(line) for line in (tmp_path / "see" / "test_answers.jsonl").read_text().splitlines()]
    assert len(found) == 30 and all(row["score"] == float(row["answer"] in row["references"]) for row in found)
    scores = json.loads((tmp_path / "see" / "test.json").read_text())["scores"]
    captions = [recalls for row in found for recalls in row["image_recalls"]]
    for k, cut in enumerate((1, 5, 10)):
        of_images = np.mean([row["text_recalls"][k] for row in found])
        assert of_images == pytest.approx(scores[f"text_retrieval_r{cut}"]["value"])
        assert np.mean(captions, axis=0)[k] == pytest.approx(scores[f"image_retrieval_r{cut}"]["value"])


def test_two_sets_of_one_name_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    sets = [Scores(Evaluation(task="vqa")) for _ in range(2)]
    for scores in sets:
        scores.update(a_batch([1]), answers_to([1]))
    with pytest.raises(ValueError, match="two evaluation sets give 'vqa_accuracy'"):
        write_results(tmp_path / "test.json", sets, 1.0)
    assert not list(tmp_path.iterdir())

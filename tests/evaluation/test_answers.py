"""What `test_answers.jsonl` holds is enough for every score, interval included."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lightning_mllm.contracts import Evaluation
from lightning_mllm.evaluation.answers import AnsweredSet, read_answers
from lightning_mllm.evaluation.bootstrap import metric_intervals
from lightning_mllm.evaluation.metrics import DocumentLoss
from lightning_mllm.evaluation.results import write_results
from lightning_mllm.evaluation.scores import Scores
from lightning_mllm.evaluation.text_scores import TextScores, _Read
from tests.evaluation.run_folders import write_branches, write_run
from tests.evaluation.test_scores import a_batch


def scored(answered: AnsweredSet) -> dict[str, dict[str, float]]:
    """Every score and its interval, as `test.json` has them."""
    ids = list(answered.samples)
    clusters = np.array([answered.samples[each].cluster for each in ids])
    suffix = f"_{answered.part}" if answered.part else ""
    return {
        name + suffix: asdict(found)
        for metric in answered.metrics(ids)
        for name, found in metric_intervals(metric, clusters).items()
    }


def everything(root: Path) -> list[Path]:
    write_branches(root / "branches")
    write_run(root / "run")
    ids = list(range(24))
    pope = Scores(Evaluation(task="pope"))
    batch = a_batch(ids)
    batch.references = [("yes",) if i % 2 else ("no",) for i in ids]
    pope.update(batch, ["yes" if i % 3 else "no" for i in ids])
    documents = TextScores(Evaluation(task="perplexity"))
    documents._losses = {(i, ""): _Read(f"d{i}", (), DocumentLoss(2.0 + i, 3), b"") for i in ids}
    found = [pope, documents]
    for each in found:
        each.compute()
    write_results(root / "other" / "say" / "test.json", found, 1.0)
    return sorted(root.glob("*/*/test.json"))


def test_every_score_is_computed_again_from_the_answers(tmp_path: Path) -> None:
    tasks = set()
    for path in everything(tmp_path):
        expected = json.loads(path.read_text())["scores"]
        again: dict[str, dict[str, float]] = {}
        for name, answered in read_answers(path.with_name("test_answers.jsonl")).items():
            assert name == answered.name
            assert len(answered.per_sample(list(answered.samples))) == len(answered.samples)
            tasks.add(answered.task)
            again |= scored(answered)
        assert again.keys() == {name for name in expected if not name.endswith("_blind")}
        for name, found in again.items():
            # Captions of one image are drawn as one sum, which rounds in another order.
            assert found == pytest.approx(expected[name], abs=1e-12), name
    assert tasks == {"vqa", "caption", "choice", "retrieval", "pope", "perplexity"}


def test_samples_of_one_id_are_told_apart_by_their_order(tmp_path: Path) -> None:
    row = {"task": "vqa", "part": "", "blind": False, "id": "7", "cluster": 0, "answer": "a", "references": ["a"]}
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({**row, "answer": answer}) + "\n" for answer in "ab"))
    found = read_answers(file)["vqa"]
    assert list(found.samples) == [("7", 0), ("7", 1)]
    assert found.per_sample(list(found.samples)) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"answers.jsonl:1: found no JSON \(.*\), expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"task": "vqa", "part": "", "id": "1"}', "answers.jsonl:1: found no 'cluster', expected an answer as mllm"),
        ('{"task": "vqb", "part": "", "id": "1"}', "answers.jsonl:1: found task is 'vqb', expected one of"),
        (
            '{"task": "retrieval", "part": "", "id": "1", "cluster": 0, "answer": "a", "score": 1.0}',
            "found no 'text_recalls', .*; test the run again",
        ),
    ],
)
def test_lines_of_no_answer_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "answers.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path / "answers.jsonl")

"""A run folder as two finished stages and a test leave it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lightning_mllm.contracts import Evaluation
from lightning_mllm.evaluation.results import write_results
from lightning_mllm.evaluation.retrieval import Retrieval
from lightning_mllm.evaluation.scores import Scores
from tests.evaluation.test_retrieval import Net, images
from tests.evaluation.test_scores import a_batch, answers_to

TABLE = [
    {
        "part": "vision",
        "parameters": 3000,
        "trained": False,
        "lr": None,
        "weight_decay": None,
        "dtype": "torch.bfloat16",
    },
    {
        "part": "connector",
        "parameters": 500,
        "trained": True,
        "lr": 0.001,
        "weight_decay": 0.0,
        "dtype": "torch.float32",
    },
]


def write_run(root: Path, said: str = "a small <b>dog</b>") -> Path:
    _stage(root / "tune", ["exp/align"], steps=80, seconds=61.5, validated=True)
    _stage(root / "align", [], steps=60, seconds=20.0, validated=False)
    questions, blind = Scores(Evaluation(task="vqa")), Scores(Evaluation(task="vqa", blind=True))
    ids = list(range(12))
    asked = a_batch(ids)
    asked.clusters = [(f"{i // 2}.png",) for i in ids]
    asked.question_types = ["number"] * 12
    questions.update(asked, answers_to(ids))
    blind.update(asked, ["3"] * 12)
    captions = Scores(Evaluation(task="caption", part="novel"))
    batch = a_batch([1, 2])
    batch.references = [("a small dog", "one dog"), ("two cats", "cats & more cats")]
    captions.update(batch, [said, ""])
    every = [questions, blind, captions]
    for scores in every:
        scores.compute()
    write_results(root / "tune" / "test.json", every, 7.25)
    return root


def write_branches(root: Path) -> Path:
    """Three stages, each of them tested: retrieval, and two language models that start from it."""
    for name, parents in (("see", []), ("say_opt", ["see"]), ("say_t5", ["see"])):
        _stage(root / name, parents, steps=40, seconds=10.0, validated=False)
    found = [Retrieval(Evaluation(task="retrieval", blind=blind), Net(rerank=4)) for blind in (False, True)]
    for each in found:
        each.update(images(list(range(30))))
        each.compute()
    write_results(root / "see" / "test.json", found, 3.0)
    for name, wrong in (("say_opt", 3), ("say_t5", 5)):
        questions, blind = Scores(Evaluation(task="vqa")), Scores(Evaluation(task="vqa", blind=True))
        choices = Scores(Evaluation(task="choice", part="science"))
        ids = list(range(20))
        questions.update(a_batch(ids), [str(i) if i % wrong else "none" for i in ids])
        blind.update(a_batch(ids), ["3"] * 20)
        batch = a_batch(ids)
        batch.candidates = [(str(i), str(i + 1)) for i in ids]
        choices.rank(batch, [[-1.0, -2.0 + i % wrong] for i in ids])
        for each in (questions, blind, choices):
            each.compute()
        write_results(root / name / "test.json", [questions, blind, choices], 2.0)
    return root


def _stage(folder: Path, parents: list[str], *, steps: int, seconds: float, validated: bool) -> None:
    (folder / "weights").mkdir(parents=True)
    record = {
        "stage": folder.name,
        "steps": steps,
        "init_from": dict.fromkeys(parents, 1.0),
        "settings": {"freeze_table": TABLE, "seconds": seconds},
    }
    (folder / "weights" / "stage.json").write_text(json.dumps(record))
    lines = ["step,train/loss,train/lr,val/vqa_accuracy"]
    for step in range(1, steps + 1):
        score = f"{step / steps}" if validated and step % 20 == 0 else ""
        lines.append(f"{step},{math.exp(-step / 20)},{0.001 / step},{score}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")

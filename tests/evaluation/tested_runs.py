"""Run folders of one tested stage, whose answers are right where a function says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml

from lightning_mllm.contracts import Evaluation
from lightning_mllm.evaluation.bootstrap import metric_intervals
from lightning_mllm.evaluation.results import write_results
from lightning_mllm.evaluation.scores import Scores
from tests.evaluation.run_folders import TABLE
from tests.evaluation.test_scores import a_batch

TYPES = ("count", "colour", "place")
WORDS = ["a", "red", "ball", "lies", "beside", "two", "small", "blue", "cats", "on", "the", "mat"]


def write_tested(
    root: Path,
    right: Callable[[int], bool],
    *,
    ids: Sequence[int] = range(180),
    captions: Sequence[int] = range(20),
    stage: str = "instruct",
    settings: Mapping[str, object] | None = None,
    pictures: Path = Path("pictures"),
) -> Path:
    """Questions about every third of `ids` as a picture, typed in turn, and captions that are the better the righter.

    Returns:
        The run's folder, `root`.
    """
    found = []
    for blind in (False, True):
        questions = Scores(Evaluation(task="vqa", blind=blind))
        asked = a_batch(list(ids))
        asked.clusters = [(str(pictures / f"{i // 3}.png"),) for i in ids]
        asked.question_types = [TYPES[i % 3] for i in ids]
        questions.update(asked, [str(i) if right(i) and not blind else "none" for i in ids])
        found.append(questions)
    if captions:
        told = Scores(Evaluation(task="caption", part="novel"))
        batch = a_batch(list(captions))
        texts = [" ".join(WORDS[i % 7 : i % 7 + 5]) for i in captions]
        batch.references = [(text, f"{text} today") for text in texts]
        told.update(batch, [text if right(i) else "a mat" for i, text in zip(captions, texts, strict=True)])
        found.append(told)
    with pytest.MonkeyPatch.context() as patch:
        # Of the intervals of single runs nothing is asked.
        patch.setattr("lightning_mllm.evaluation.scores.metric_intervals", partial(metric_intervals, samples=50))
        for each in found:
            each.compute()
    folder = root / stage
    write_results(folder / "test.json", found, 3.0)
    record = {
        "stage": stage,
        "steps": 40,
        "init_from": {},
        "sha256": "",
        "lineage": [],
        "settings": {"freeze_table": TABLE, "seconds": 12.0},
    }
    (folder / "weights").mkdir()
    (folder / "weights" / "stage.json").write_text(json.dumps(record))
    config = {"seed_everything": 0, "run_dir": str(folder), "stage": {"global_batch": 8, "lr": 0.1}, **(settings or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = ["step,throughput/seconds_per_step,throughput/tokens_per_second,train/loss"]
    lines += [f"{step},0.5,200,{2.0 / step}" for step in range(1, 41)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return root

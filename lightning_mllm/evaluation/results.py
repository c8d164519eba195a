"""`test.json`: the scores of a tested stage and some of its answers, as `write_report` reads them.

{"scores": {"vqa_accuracy": {"value", "low", "high"}, "vqa_accuracy_blind": ..., "cider": ...},
 "samples": {"vqa": 1200, "vqa_novel": 400, ...},                       task + suffix -> answers scored
 "examples": [{"task", "part", "blind", "id", "prompt", "answer", "references", "picture", "score"}],
 "seconds": 41.3}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.evaluation.retrieval import Retrieval
from lightning_mllm.evaluation.scores import Scores
from lightning_mllm.evaluation.text_scores import TextScores
from lightning_mllm.weights.files import write_text


def write_results(path: Path, scores: Sequence[Scores | Retrieval | TextScores], seconds: float) -> None:
    """Writes the computed `scores` to `path`; for one rank, after all have called `compute` on each of them.

    Raises:
        ValueError: two sets give scores of the same name.
    """
    values: dict[str, Interval] = {}
    for each in scores:
        for name, interval in each.compute().items():
            if name in values:
                raise ValueError(f"two evaluation sets give '{name}', expected different tasks or parts")
            values[name] = interval
    examples = [
        {"task": each.evaluation.task, "part": each.evaluation.part, "blind": each.evaluation.blind, **asdict(example)}
        for each in scores
        for example in each.examples
    ]
    samples = {each.evaluation.task + each.evaluation.suffix: each.num_answers for each in scores}
    found = {name: asdict(interval) for name, interval in values.items()}
    write_json(path, {"scores": found, "samples": samples, "examples": examples, "seconds": seconds})


def write_json(path: Path, content: Any) -> None:
    """Writes the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")

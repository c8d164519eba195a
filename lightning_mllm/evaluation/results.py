"""`test.json`: the scores of a tested stage and some of its answers, as `write_report` reads them; and all its answers.

{"scores": {"vqa_accuracy": {"value", "low", "high"}, "vqa_accuracy_blind": ..., "cider": ...},
 "samples": {"vqa": 1200, "vqa_novel": 400, ...},                       task + suffix -> answers scored
 "clusters": {"vqa": 400, "vqa_novel": 133, ...},                       task + suffix -> pictures that intervals draw
 "kinds": {"mme_total": {"count": {"value", "low", "high", "samples"}}},   some scores of each kind of question
 "examples": [{"task", "part", "blind", "id", "prompt", "answer", "references", "picture", "score"}],
 "seconds": 41.3,
 "weights": "9f86d0..."}                                                SHA-256 of the tested weights, of `stage.json`

`test_answers.jsonl` beside it has a line for every answer, in the order of the sets, for comparisons with other runs:

{"task", "part", "blind", "id", "cluster", "prompt", "answer", "references", "score"}

`cluster` numbers the pictures of a set from 0; `score` is that of the headline score, null where it is one of a corpus.
Where the data say so, a line also has `question_type`, and `pictures`: the names of the files that it is about. Ranked
closed sets also have `candidates` and `likelihoods`; retrieval `text_recalls` of the image and `image_recalls` of each
of its captions, at 1, 5 and 10; documents `loss` and `tokens` instead. Every score can be computed from these again
(evaluation/answers.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.evaluation.retrieval import Retrieval
from lightning_mllm.evaluation.scores import Scores
from lightning_mllm.evaluation.text_scores import TextScores
from lightning_mllm.weights.files import write_text

TEST_ANSWERS = "test_answers.jsonl"


def write_results(
    path: Path, scores: Sequence[Scores | Retrieval | TextScores], seconds: float, weights: str | None = None
) -> None:
    """Writes the computed `scores` to `path` and their answers to `test_answers.jsonl` beside it; for one rank, after
    all have called `compute` on each of them.

    Args:
        weights: SHA-256 of the hand-over that was tested, as in `stage.json`; None where it was another net.

    Raises:
        ValueError: two sets give scores of the same name.
    """
    values: dict[str, Interval] = {}
    for each in scores:
        for name, interval in each.compute().items():
            if name in values:
                raise ValueError(f"two evaluation sets give '{name}', expected different tasks or parts")
            values[name] = interval
    examples = [{**asdict(each.evaluation), **asdict(example)} for each in scores for example in each.examples]
    names = [each.evaluation.task + each.evaluation.suffix for each in scores]
    counts: dict[str, Mapping[str, object]] = {
        "samples": {name: each.num_answers for name, each in zip(names, scores, strict=True)},
        "clusters": {name: each.num_clusters for name, each in zip(names, scores, strict=True)},
    }
    found = {name: asdict(interval) for name, interval in values.items()}
    if kinds := {name: found for each in scores if isinstance(each, Scores) for name, found in each.kinds.items()}:
        counts["kinds"] = kinds
    write_lines(path.with_name(TEST_ANSWERS), chain.from_iterable(_rows(each) for each in scores))
    write_json(path, {"scores": found, **counts, "examples": examples, "seconds": seconds, "weights": weights})


def _rows(scores: Scores | Retrieval | TextScores) -> list[dict[str, object]]:
    return [{**asdict(scores.evaluation), **row} for row in scores.rows]


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes a line of JSON for each row, the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, content: object) -> None:
    """Writes the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")

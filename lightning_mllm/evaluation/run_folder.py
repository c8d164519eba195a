"""What the stages of an experiment left in its run folder.

RUN/<stage>/weights/stage.json   which stage, its steps, its freeze table, its seconds
RUN/<stage>/metrics.csv          curves
RUN/<stage>/test.json            scores and examples (lightning_mllm/evaluation/results.py)
--> RUN/report.json, RUN/report.html
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from lightning_mllm.evaluation.tasks import ScoreInfo, find_score
from lightning_mllm.weights.lineage import starts_from
from lightning_mllm.weights.run_records import read_record

BLIND = "_blind"
"""How the name of a blind twin's score ends."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What one finished stage left behind."""

    name: str
    steps: int
    seconds: float
    freeze_table: list[dict[str, Any]]
    """Rows of part, parameters, trained, lr, weight_decay, dtype."""
    metrics: dict[str, list[tuple[float, float]]]
    """Name -> (step, value), steps rising."""

    @property
    def parameters(self) -> int:
        """Of the whole net; 0 where no freeze table was written."""
        return sum(row["parameters"] for row in self.freeze_table)

    @property
    def trained(self) -> int:
        """Of its parameters, how many were trained."""
        return sum(row["parameters"] for row in self.freeze_table if row["trained"])


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score of a tested stage, each with value, low and high."""

    stage: str
    name: str
    info: ScoreInfo
    part: str
    """Of the test data; empty for the whole."""
    found: dict[str, float]
    blind: dict[str, float] | None
    """What the blind twin of the set gave."""


@dataclass(frozen=True, kw_only=True)
class Tested:
    """The `test.json` of one stage."""

    stage: str
    scores: dict[str, dict[str, float]]
    """Score name -> value, low, high."""
    samples: dict[str, int]
    """Task and suffix of each set -> answers scored."""
    clusters: dict[str, int]
    """The same -> pictures that its intervals draw; empty where an older version tested."""
    examples: list[dict[str, Any]]
    seconds: float
    kinds: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Of some scores: name -> kind of question -> value, low, high, samples; blind twins left out."""

    @property
    def sizes(self) -> list[str]:
        """How large each set is, blind twins left out: `1,200 vqa about 400 pictures`."""
        return [
            f"{count:,} {name}"
            + (f" about {drawn:,} pictures" if (drawn := self.clusters.get(name, count)) < count else "")
            for name, count in self.samples.items()
            if not name.endswith(BLIND)
        ]

    @property
    def rows(self) -> list[Score]:
        """Its scores, blind ones beside those they belong to."""
        rows = []
        for name, found in self.scores.items():
            if not name.endswith(BLIND):
                if (known := find_score(name)) is None:
                    raise ValueError(f"{self.stage}/test.json: found the score '{name}', which no task gives")
                info, part = known
                blind = self.scores.get(name + BLIND)
                rows.append(Score(stage=self.stage, name=name, info=info, part=part, found=found, blind=blind))
        return rows


@dataclass(frozen=True, kw_only=True)
class Report:
    """An experiment in numbers."""

    name: str
    stages: list[StageReport]
    tests: list[Tested]
    """Of every stage that was tested, in the order of the stages."""

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """All scores by name; where several stages were tested, the name is STAGE/SCORE."""
        several = len(self.tests) > 1
        return {
            f"{each.stage}/{name}" if several else name: found
            for each in self.tests
            for name, found in each.scores.items()
        }

    @property
    def test_seconds(self) -> float:
        return sum(each.seconds for each in self.tests)

    @property
    def seconds(self) -> float:
        """Of training, over all stages and restarts, and of the tests."""
        return sum(stage.seconds for stage in self.stages) + self.test_seconds


def read_report(run_root: Path) -> Report:
    """Gathers a folder of finished stages.

    Raises:
        ValueError: there is no finished stage, or none was tested.
    """
    records = {
        path.parents[1].name: read_record(path, needs=("steps",))
        for path in sorted(run_root.glob("*/weights/stage.json"))
    }
    if not records:
        raise ValueError(f"{run_root}: found no finished stage, expected at least one <stage>/weights/stage.json")
    order = _order(records)
    tested = [name for name in order if (run_root / name / "test.json").is_file()]
    if not tested:
        raise ValueError(f"{run_root}: found no test.json, expected one in the last stage ({order[-1]}); run mllm test")
    return Report(
        name=experiment_of(run_root),
        stages=[_stage(run_root / name, records[name]) for name in order],
        tests=[read_tested(run_root / name) for name in tested],
    )


def read_tested(folder: Path) -> Tested:
    """The `test.json` in the folder of a stage."""
    needs = ("scores", "samples", "examples", "seconds")
    results = read_record(folder / "test.json", "move it away to test again", needs)
    known = {name: results[name] for name in needs}
    kinds = {name: each for name, each in results.get("kinds", {}).items() if not name.endswith(BLIND)}
    return Tested(stage=folder.name, clusters=results.get("clusters", {}), kinds=kinds, **known)


def read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The curves of a `metrics.csv`: column -> (step, value), without empty and non-finite cells.

    Raises:
        ValueError: it is damaged.
    """
    found: dict[str, dict[float, float]] = {}
    try:
        rows = csv.DictReader(path.read_bytes().decode().splitlines() if path.is_file() else [])
        if rows.fieldnames and "step" not in rows.fieldnames:
            raise ValueError("no column 'step'")
        for row in rows:
            if None in row:
                raise ValueError(f"more cells than columns in line {rows.line_num}")
            step = row.pop("step")
            for name, cell in row.items():
                if step and cell and name and math.isfinite(float(cell)):
                    found.setdefault(name, {})[float(step)] = float(cell)
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: found {error}, expected a table of numbers; mend it, or move it away") from None
    return {name: sorted(points.items()) for name, points in found.items()}


def _stage(folder: Path, record: dict[str, Any]) -> StageReport:
    facts = {**record, **record.get("settings", {})}
    return StageReport(
        name=folder.name,
        steps=int(record["steps"]),
        seconds=float(facts.get("seconds", 0.0)),
        freeze_table=facts.get("freeze_table", []),
        metrics=read_metrics(folder / "metrics.csv"),
    )


def _order(records: dict[str, dict[str, Any]]) -> list[str]:
    """Stage folders, each after those of the same experiment that it starts from."""
    parents = {
        name: sorted(other for other, earlier in records.items() if starts_from(name, record, other, earlier))
        for name, record in records.items()
    }
    try:
        return list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        raise ValueError(f"found stages that start from one another: {' -> '.join(error.args[1])}") from None


def experiment_of(run_root: Path, runs: Path = Path("runs")) -> str:
    """The path of a run below the folder `runs`, or below the first folder of that name; elsewhere its own name."""
    path, root = run_root.resolve(), runs.resolve()
    if path != root and path.is_relative_to(root):
        return str(path.relative_to(root))
    return "/".join(path.parts[path.parts.index("runs") + 1 :]) if "runs" in path.parts[:-1] else path.name

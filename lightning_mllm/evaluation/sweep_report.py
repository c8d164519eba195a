"""What a sweep has found: which parameters matter, and the page that shows its trials.

Importance is W&B's: a forest of regression trees predicts the metric from the parameters, and the correlation says in
which direction one of numbers goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup

from lightning_mllm.evaluation.parallel_coordinates import Axis, Line, as_svg, draw_lines
from lightning_mllm.evaluation.report import template
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.weights.files import write_text

FEWEST = 3
"""Trials with a value, below which nothing is said of importance."""
TREES = 200
WIDE = 30.0
"""A parameter whose largest value is so many times its smallest is taken by its logarithm."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial."""

    number: int
    state: str
    """finished, stopped (early), failed, or running where the sweep was stopped."""
    value: float | None
    """Of the metric."""
    seconds: float
    values: Mapping[str, object]
    """Parameter -> its value."""
    said: str = ""
    """Why it failed."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Of one parameter."""

    name: str
    importance: float
    """From 0 to 1, all of them adding up to 1."""
    correlation: float | None
    """With the metric, from -1 to 1; None of what are no numbers."""


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """A sweep in numbers."""

    name: str
    method: str
    metric: str
    maximize: bool
    trials: Sequence[Tried]
    asked: Mapping[str, object] = field(default_factory=dict)
    """What says that it is this sweep: file and seed."""

    @property
    def best(self) -> Tried | None:
        """Of the finished trials; the first of several."""
        found = [each for each in self.trials if each.state == "finished" and each.value is not None]
        return min(found, key=lambda each: -_value(each) if self.maximize else _value(each), default=None)

    @property
    def parameters(self) -> list[str]:
        """Those that differ between trials."""
        names = dict.fromkeys(name for each in self.trials for name in each.values)
        found = {name: {label(each.values[name]) for each in self.trials if name in each.values} for name in names}
        return [name for name in names if len(found[name]) > 1]

    @property
    def ranked(self) -> list[Tried]:
        """The best first, those without a value last."""
        sign = -1 if self.maximize else 1
        return sorted(self.trials, key=lambda each: (each.value is None, sign * (each.value or 0.0), each.number))

    @property
    def seconds(self) -> float:
        return sum(each.seconds for each in self.trials)


def _value(trial: Tried) -> float:
    assert trial.value is not None
    return trial.value


def label(value: object) -> str:
    """A value in a few characters: `MlpConnector (depth=2)`, `r=8, alpha=16`, `0.003`."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            arguments = value.get("init_args")
            inner = label(arguments) if arguments else ""
            name = str(value["class_path"]).rpartition(".")[2]
            return f"{name} ({inner})" if inner else name
        return ", ".join(_entry(str(key).rpartition("/")[2], each) for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(label, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def _entry(key: str, value: object) -> str:
    if isinstance(value, Mapping) and "class_path" not in value:
        return f"{key} ({label(value)})" if value else key
    return f"{key}={label(value)}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether numbers are compared by their logarithms: they are positive and span orders of magnitude."""
    return min(values) > 0 and max(values) / min(values) >= WIDE


def importances(report: SweepReport) -> list[Importance]:
    """Of the parameters that differ, the most important first; nothing of fewer than three trials."""
    trials = [each for each in report.trials if each.value is not None]
    scores = np.array([_value(each) for each in trials])
    if len(trials) < FEWEST or not report.parameters or not np.ptp(scores):
        return []
    from sklearn.ensemble import RandomForestRegressor

    columns: list[np.ndarray] = []
    owners: list[str] = []
    correlations: dict[str, float | None] = {}
    for name in report.parameters:
        values = [each.values.get(name) for each in trials]
        if all(map(_is_number, values)):
            numbers = np.array(values, dtype=float)
            numbers = np.log10(numbers) if is_logarithmic(numbers.tolist()) else numbers
            columns.append(numbers)
            owners.append(name)
            correlations[name] = float(np.corrcoef(numbers, scores)[0, 1]) if np.ptp(numbers) else None
        else:
            words = list(map(label, values))
            columns += [np.array([each == word for each in words], dtype=float) for word in dict.fromkeys(words)]
            owners += [name] * (len(columns) - len(owners))
            correlations[name] = None
    forest = RandomForestRegressor(n_estimators=TREES, random_state=0, n_jobs=1)
    forest.fit(np.column_stack(columns), scores)
    found = dict.fromkeys(report.parameters, 0.0)
    for name, share in zip(owners, forest.feature_importances_, strict=True):
        found[name] += float(share)
    ordered = sorted(found, key=lambda name: -found[name])
    return [Importance(name=name, importance=found[name], correlation=correlations[name]) for name in ordered]


def picture(report: SweepReport) -> tuple[list[Axis], list[Line]]:
    """The axes and lines of the parallel coordinates: the parameters, then the metric."""
    shown = [each for each in report.trials if each.value is not None and math.isfinite(each.value)]
    axes: list[Axis] = []
    heights: list[list[float]] = []
    for name in report.parameters:
        values = [each.values.get(name) for each in shown]
        if values and all(map(_is_number, values)):
            numbers = [float(value) for value in values if isinstance(value, int | float)]
            axes.append(Axis(name=name, values=sorted(set(numbers)), logarithmic=is_logarithmic(numbers)))
            heights.append(axes[-1].heights(numbers))
        else:
            words = sorted(set(map(label, values)))
            axes.append(Axis(name=name, words=words))
            heights.append([axes[-1].height(words.index(label(value))) for value in values])
    scores = [_value(each) for each in shown]
    axes.append(Axis(name=report.metric, values=sorted(set(scores))))
    heights.append(axes[-1].heights(scores))
    order = np.argsort(np.argsort(scores)) / max(1, len(scores) - 1) if scores else []
    goodness = [float(each if report.maximize else 1 - each) for each in order]
    best = report.best
    lines = [
        Line(heights=[column[index] for column in heights], goodness=goodness[index], best=each is best)
        for index, each in enumerate(shown)
    ]
    return axes, lines


def write_sweep(folder: Path, report: SweepReport) -> list[Importance]:
    """Writes `sweep.json`, `sweep.html`, and `sweep.png` where two trials have a value; gives the importances."""
    folder.mkdir(parents=True, exist_ok=True)
    found = importances(report)
    axes, lines = picture(report)
    if len(lines) > 1:
        draw_lines(folder / "sweep.png", axes, lines, title=f"{report.name}: {report.metric}")
    write_text(folder / "sweep.html", _page(report, found, Markup(as_svg(axes, lines)) if len(lines) > 1 else None))
    best = report.best
    content = {
        "asked": report.asked,
        "metric": report.metric,
        "goal": "maximize" if report.maximize else "minimize",
        "best": None if best is None else best.number,
        "trials": [asdict(each) for each in report.trials],
        "importance": [asdict(each) for each in found],
    }
    write_json(folder / "sweep.json", content)
    return found


def _page(report: SweepReport, found: Sequence[Importance], figure: Markup | None) -> str:
    return template("sweep.html.jinja", label=label).render(report=report, importances=found, figure=figure)

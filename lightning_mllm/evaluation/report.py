"""`report.json` and `report.html` of an experiment; the page is templates/report.html.jinja, without scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from lightning_mllm.evaluation.figures import DARK, LIGHT, Curve, curves, duration, number, round_numbers
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.evaluation.run_folder import Report, Score, StageReport, read_report
from lightning_mllm.evaluation.tasks import TASKS, find_score
from lightning_mllm.weights.files import write_text

MOST_ANSWERS = 12
FEWER_ANSWERS = 6
"""Of each set where several stages were tested."""


def write_report(run_root: Path) -> Report:
    """Writes `report.json` and the self-contained `report.html` into `run_root`, a folder of finished stages.

    `report.json` holds the scores of the tested stage, each with value, low and high, and `seconds`. Where several
    stages were tested, their scores are named STAGE/SCORE.

    Raises:
        ValueError: there is no finished stage, or none was tested.
    """
    report = read_report(Path(run_root))
    write_json(Path(run_root) / "report.json", {**report.scores, "seconds": report.seconds})
    write_text(Path(run_root) / "report.html", render(report))
    return report


def template(name: str, **filters: Callable[..., object]) -> Template:
    """A page of `templates/` that knows the house's colours and how it writes numbers."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(light=LIGHT, dark=DARK)
    environment.filters.update(duration=duration, fixed=_fixed, number=number, **filters)
    return environment.get_template(name)


def render(report: Report) -> str:
    """The whole page."""
    return template("report.html.jinja", scale=_scale).render(
        report=report,
        retrieval=any(name.startswith("retrieval") for tested in report.tests for name in tested.samples),
        groups=_groups(report),
        figures={stage.name: _figures(stage) for stage in report.stages},
        speeds={stage.name: _speeds(stage) for stage in report.stages},
        times=[*((stage.name, stage.seconds) for stage in report.stages), ("test", report.test_seconds)],
    )


@dataclass(frozen=True, kw_only=True)
class _Figure:
    title: str
    note: str
    """A value of its only line."""
    lines: list[Curve]
    svg: Markup


def _figures(stage: StageReport) -> list[_Figure]:
    """The training loss, and the headline scores on the validation set or else the learning rate."""

    loss = _figure(stage, "Training loss over steps", ["train/loss"], noisy=True)
    validated = [name for name in stage.metrics if name.startswith("val/") and _is_headline(name.removeprefix("val/"))]
    scores = _figure(stage, "Validation scores over steps", validated)
    rate = _figure(stage, "Learning rate over steps", ["train/lr"])
    if rate is not None:
        rate = replace(rate, note=f"peak {number(max(value for _, value in rate.lines[0].points))}")
    return [each for each in (loss, scores or rate) if each is not None]


SPEEDS: dict[str, Callable[[float], str]] = {
    "throughput/tokens_per_second": lambda value: f"{number(value)} tokens/s",
    "throughput/supervised_tokens_per_second": lambda value: f"{number(value)} of them learned",
    "throughput/images_per_second": lambda value: f"{number(value)} images/s",
    "throughput/mfu": lambda value: f"{100 * value:.0f} % of the data sheet's peak",
    "throughput/mfu_measured": lambda value: f"{100 * value:.0f} % of the measured peak",
    "throughput/data_wait": lambda value: f"{100 * value:.1f} % waiting for data",
    "memory/device_gb": lambda value: f"{value:.1f} GB of the device",
    "memory/host_gb": lambda value: f"{value:.1f} GB of the host",
}
"""Columns of `metrics.csv` (training/callbacks/throughput.py) -> their median in words; of memory it is the peak."""


def _speeds(stage: StageReport) -> list[str]:
    """How fast a stage was trained, as far as it is known."""
    found = []
    for name, told in SPEEDS.items():
        if values := [value for _, value in stage.metrics.get(name, [])]:
            found.append(told(max(values) if name.startswith("memory/") else median(values)))
    return found


def _figure(stage: StageReport, title: str, names: Sequence[str], *, noisy: bool = False) -> _Figure | None:
    lines = [Curve(name=name, points=stage.metrics[name], noisy=noisy) for name in names if stage.metrics.get(name)]
    if not lines:
        return None
    svg = Markup(curves(lines, from_zero=not noisy))
    return _Figure(title=title, note=f"last {number(lines[0].points[-1][1])}", lines=lines, svg=svg)


def _is_headline(name: str) -> bool:
    found = find_score(name)
    return found is not None and found[0].headline


def _groups(report: Report) -> list[dict[str, object]]:
    """The examples of each set, blind ones left out."""
    sets: dict[tuple[str, str, str], list[dict[str, object]]] = {}
    for tested in report.tests:
        for example in tested.examples:
            if not example["blind"]:
                verdict = ""
                told = example["task"] != "caption" and TASKS[example["task"]].scores[0].higher_is_better is not None
                if told and example["score"] is not None:
                    verdict = "good" if example["score"] >= 0.5 else "bad"
                shown = {
                    **example,
                    "prompt": " ".join(example["prompt"].replace("<image>", " ").split()),
                    "references": Counter(example["references"]).most_common(),
                    "verdict": verdict,
                }
                sets.setdefault((tested.stage, example["task"], example["part"]), []).append(shown)
    most = MOST_ANSWERS if len(report.tests) == 1 else FEWER_ANSWERS
    return [
        {"title": TASKS[task].title, "part": part, "stage": stage, "examples": examples[:most]}
        for (stage, task, part), examples in sets.items()
    ]


def _scale(score: Score) -> float:
    """Where the bars of a score end: 1, or a round number above its intervals."""
    return max(1.0, *(round_numbers(0, each["high"])[-1] for each in (score.found, score.blind) if each))


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"

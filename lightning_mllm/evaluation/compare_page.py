"""`compare.json` and `compare.html` of compared runs; the page is templates/compare.html.jinja, without scripts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from statistics import median

from markupsafe import Markup

from lightning_mllm.evaluation.compared_runs import Side
from lightning_mllm.evaluation.comparison import Comparison, Contrasts, Difference
from lightning_mllm.evaluation.figures import Curve, curves
from lightning_mllm.evaluation.report import template
from lightning_mllm.evaluation.results import write_json
from lightning_mllm.evaluation.run_folder import Score
from lightning_mllm.evaluation.tasks import TASKS
from lightning_mllm.weights.files import write_text

LONGEST = 120
"""Characters of a setting that the page shows."""
MOST_CURVES = 6


def write_page(comparison: Comparison, to: Path) -> Path:
    """Writes `compare.json` and the self-contained `compare.html` into the folder `to`; gives the page."""
    write_json(to / "compare.json", as_json(comparison))
    write_text(to / "compare.html", render(comparison))
    return to / "compare.html"


def as_json(comparison: Comparison) -> dict[str, object]:
    """All of it but the pictures and the answers that nobody asks about."""
    return {
        "sides": [
            {
                "name": side.name,
                "runs": [
                    {
                        "name": run.name,
                        "stage": run.stage,
                        "scores": run.tested.scores,
                        "samples": run.tested.samples,
                        "cost": asdict(run.cost),
                    }
                    for run in side.runs
                ],
            }
            for side in comparison.sides
        ],
        "headlines": [_difference(each) for each in comparison.headlines],
        "kinds": [_difference(each) for each in comparison.kinds],
        "further": [_difference(each) for each in comparison.further],
        "seeds": [{**asdict(each), "info": each.info.name} for each in comparison.seeds],
        "samples": [
            {**asdict(each), "samples": [{**asdict(one), "picture": bool(one.picture)} for one in each.samples]}
            for each in comparison.contrasts
        ],
        "settings": [asdict(each) for each in comparison.settings],
        "notes": list(comparison.notes),
    }


def _difference(each: Difference) -> dict[str, object]:
    found = {name: value for name, value in asdict(each).items() if name != "info"}
    return {**found, "verdict": each.verdict, "sentence": each.sentence, "narrower": each.narrower}


def render(comparison: Comparison) -> str:
    """The whole page."""
    every = (*comparison.headlines, *comparison.kinds, *comparison.further)
    return template("compare.html.jinja", setting=_setting, span=_span).render(
        comparison=comparison,
        first=comparison.sides[0],
        several=len(comparison.sides) > 2,
        scales={each.info.name: _scale(every, each.info.name) for each in every},
        groups=_groups(comparison),
        scores=_side_by_side(comparison.sides),
        shown=[_shown(each) for each in comparison.contrasts],
        curves=_curves(comparison.sides),
    )


def _scale(every: Sequence[Difference], name: str) -> float:
    """How far the intervals of one score reach from 0."""
    ends = [(each.difference, each.unpaired) for each in every if each.info.name == name]
    return max(max(abs(end.low), abs(end.high)) for pair in ends for end in pair) or 1.0


def _groups(comparison: Comparison) -> list[dict[str, object]]:
    """Each other side's headline scores, each with its kinds of questions, and its further scores."""
    found = []
    for side in comparison.sides[1:]:
        rows = []
        for each in comparison.headlines:
            if each.other == side.name:
                rows.append(each)
                kinds = [kind for kind in comparison.kinds if (kind.other, kind.score) == (each.other, each.score)]
                rows += sorted(kinds, key=lambda kind: -kind.samples)
        rows += [each for each in comparison.further if each.other == side.name]
        found.append({"other": side.name, "rows": rows, "narrower": median(each.narrower for each in rows)})
    return found


def _side_by_side(sides: Sequence[Side]) -> list[dict[str, object]]:
    """Every score of `test.json`, and what each run has of it."""
    runs = list(chain.from_iterable(side.runs for side in sides))
    rows: dict[str, dict[str, Score]] = {}
    for run in runs:
        for score in run.tested.rows:
            rows.setdefault(score.name, {})[run.name] = score
    return [{"any": next(iter(found.values())), "of": [found.get(run.name) for run in runs]} for found in rows.values()]


def _shown(contrasts: Contrasts) -> dict[str, object]:
    samples = [{**asdict(each), "references": Counter(each.references).most_common()} for each in contrasts.samples]
    better = [each for each in samples if each["scores"][0] > each["scores"][1]]
    return {
        "title": TASKS[contrasts.task].title,
        "part": contrasts.part,
        "first": contrasts.first,
        "other": contrasts.other,
        "halves": [(contrasts.first, better), (contrasts.other, [each for each in samples if each not in better])],
    }


def _curves(sides: Sequence[Side]) -> dict[str, object] | None:
    """The training losses; of a side of several seeds, of the first."""
    lines = [
        Curve(name=side.name, points=points, noisy=True)
        for side in sides[:MOST_CURVES]
        if (points := side.runs[0].curves.get("train/loss"))
    ]
    return {"lines": lines, "svg": Markup(curves(lines))} if lines else None


def _setting(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _span(low: float, high: float, bottom: float, top: float) -> str:
    """The position of an interval on a track from `bottom` to `top`, as CSS."""
    share = [100 * min(1.0, max(0.0, (end - bottom) / (top - bottom))) for end in (low, high)]
    return f"left:{share[0]:.2f}%;right:{100 - share[1]:.2f}%"

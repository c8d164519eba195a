"""How a training step of LLaVA grows: with samples, with their length, with images of a sample, with ranks.

    mllm bench training_scaling [--net S --stage instruct --pack --precision bf16 --steps 3 --to FOLDER]

One series varies one number and leaves the others: 8 samples of one image, 20 tokens of prompt and 60 of answer, one
rank. The points of all series take turns, step by step, each in a process of its own; ranks are processes of one thread
that share the machine's cores, and a step of theirs takes what all of them used. Written to FOLDER:
training_scaling.json and training_scaling.svg.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contest.report import draw_series, machine, sentence, write_json
from contest.turns import Contender, apart, race
from contest.weights import write_weights
from contest.workload import SIZES, Workload

SERIES: dict[str, Sequence[int]] = {
    "samples": (2, 4, 8, 16),
    "tokens of answer": (30, 60, 120, 240),
    "images of a sample": (1, 2, 4),
    "ranks": (1, 2),
}


def changed(workload: Workload, series: str, value: int) -> Workload:
    """With one number in place of its own."""
    if series == "samples":
        return replace(workload, batch=value)
    if series == "tokens of answer":
        return replace(workload, lengths=[(20, value)])
    if series == "images of a sample":
        return replace(workload, images=value)
    return replace(workload, ranks=value)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=SIZES, default="S")
    parser.add_argument("--stage", choices=("instruct", "align"), default="instruct")
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES), help="some of them (all)")
    parser.add_argument("--steps", type=int, default=3, help="that are counted (3)")
    parser.add_argument("--to", type=Path, default=Path("runs/benchmarks/training_scaling"))
    given = parser.parse_args(arguments)
    lengths = [(20, 60)]
    workload = Workload(given.net, given.stage, lengths, batch=8, steps=given.steps, warmup=1)
    settings = {"pack": given.pack, "precision": given.precision}
    points = [(series, value) for series in given.series for value in SERIES[series]]
    contenders = [
        Contender(f"{series} {value}", "ours", settings, own_order=True, workload=changed(workload, series, value))
        for series, value in points
    ]
    before = machine(1)
    with tempfile.TemporaryDirectory() as folder:
        apart(lambda: write_weights(workload, Path(folder)))
        found = race(workload, contenders, Path(folder), threads=1)
    series: dict[str, list[Mapping[str, Any]]] = {each: [] for each in given.series}
    for (name, value), one, contender in zip(points, found, contenders, strict=True):
        if "absent" in one:
            raise SystemExit(f"training_scaling: {sentence(one)}")
        counts = (contender.workload or workload).counts()
        used, took = one["median_cpu_s"], one["median_wall_s"]
        series[name].append({"value": value, "cpu_s": used, "wall_s": took, "own": one["own"], **counts})
        speed = f"{counts['tokens'] / used:8.0f} tokens a CPU s {counts['tokens'] / took:8.0f} a s"
        print(f"{name:20}{value:5}{used:9.3f} CPU s{took:9.3f} s  {speed}  {one['own'] / 1e9:5.2f} GB")
    result = {"machine": before, "load_after": machine(1)["load"], "settings": settings, "series": series}
    given.to.mkdir(parents=True, exist_ok=True)
    write_json(given.to / "training_scaling.json", result)
    draw_series(given.to / "training_scaling.svg", f"LLaVA {given.net}, {given.stage}", series)
    return result


if __name__ == "__main__":
    main()

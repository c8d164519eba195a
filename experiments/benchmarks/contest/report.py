"""What a benchmark leaves: a JSON file and a picture of it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def machine(threads: int) -> dict[str, Any]:
    """What figures depend on beside the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "cpu": next(names, platform.machine()),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(file: Path, found: Mapping[str, Any]) -> None:
    """Beside, and renamed."""
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    beside.replace(file)


def sentence(absent: Mapping[str, Any]) -> str:
    """Of a contender that is left out."""
    return f"{absent['name']} is left out: {absent['absent']}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of contenders, as `race` gives them."""
    lines = [f"{'':30}{'CPU s':>8}{'x':>7}{'wall s':>8}{'GB':>7}{'x':>6}{'loss':>10}{'matmul':>8}"]
    for each in rows:
        if "absent" in each:
            lines.append(sentence(each))
            continue
        peak = f"{each['own'] / 1e9:7.2f}{each['memory_ratio']:6.2f}" if each["memory_ratio"] else ""
        loss = "own order" if each["loss_difference"] is None else f"{each['loss_difference']:.1e}"
        time = f"{each['median_cpu_s']:8.3f}{each['speedup']:7.2f}{each['median_wall_s']:8.3f}"
        ending = f"{each['share_of_matmul']:8.0%}{'' if each['agrees'] else '  differs'}"
        lines.append(f"{each['name']:30}{time}{peak:13}{loss:>10}{ending}")
    return "\n".join(lines)


def draw_bars(file: Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Median CPU-seconds of a step, each step as a point, and peak memory; SVG."""
    from matplotlib.figure import Figure

    shown = [each for each in rows if "absent" not in each]
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    names = [each["name"] for each in shown]
    left.barh(names, [each["median_cpu_s"] for each in shown], color="#4878a8")
    for each in shown:
        left.plot(each["cpu_s"], [each["name"]] * len(each["cpu_s"]), ".", color="black", markersize=3)
        left.annotate(f" {each['speedup']:.1f}x", (max(each["cpu_s"]), each["name"]), va="center", fontsize=8)
    left.set_xlabel("CPU-seconds of a step: median (bar), steps (points)")
    left.margins(x=0.12)
    left.invert_yaxis()
    right.barh(names, [each["own"] / 1e9 for each in shown], color="#c0803c")
    right.set_xlabel("peak GB, without libraries")
    figure.suptitle(title, fontsize=10)
    figure.savefig(file)


def draw_values(file: Path, names: Sequence[str], values: Sequence[float], what: str) -> None:
    """A bar for each; SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.barh(names, values, color="#4878a8"), fmt=" %.3g", fontsize=8)
    axes.set_xlabel(what)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    figure.savefig(file)


def draw_series(file: Path, title: str, series: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """CPU-seconds and wall-clock seconds of a step over each number; SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(series), 3), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        values = [each["value"] for each in points]
        for what, label, style in (("cpu_s", "CPU", "o-"), ("wall_s", "wall clock", "x--")):
            axes.plot(values, [each[what] for each in points], style, label=label)
        axes.set_xticks(values)
        axes.set_xlabel(name)
        axes.set_ylabel("seconds a step")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file)

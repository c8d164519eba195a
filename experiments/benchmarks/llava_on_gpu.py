"""A LLaVA-1.5 of 7B random parameters on one GPU, here and under HF Trainer: tokens a second, memory, MFU.

    mllm bench llava_on_gpu [--to FOLDER]                one GPU of 141 GB, at most 6 minutes
    mllm bench llava_on_gpu --tiny                       the same on a CPU, in seconds, nothing compiled

Stages: align (connector), instruct_lora (connector and adapters of rank 128), instruct with as many layers of the
language model as are asked for, from which the step of all 32 follows (each layer costs the same). Contenders run one
after the other, in bfloat16, each in a process of its own. Tokens are real ones, padding not counted.

    flops           of useful work: two a weight and token forwards, two for the gradient of what it reads, two for that
                    of the weight, where it trains; the tower forwards alone; attention is causal; the head at
                    supervised tokens; nothing for what is computed again
    mfu             these in a second, of 989 TFLOP/s, the dense bf16 peak of H100 and H200 (NVIDIA's data sheets)
    mfu_of_matmul   the same, of the fastest product of 8192 x 8192 matrices of this GPU

Written to FOLDER: llava_on_gpu.json and llava_on_gpu.svg. What would begin after --seconds is left out, by name.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contest.flops import useful_flops
from contest.report import draw_values, machine, write_json
from contest.turns import Contender, apart, race
from contest.workload import Workload, read_lengths
from plan_on_gpu import PEAK, matmul_peak

OURS = {"precision": "bf16", "pack": True}
HF = {"bf16": True, "gradient_checkpointing": True}
CONTENDERS = [
    Contender("ours", "ours", OURS),
    Contender("HF Trainer", "hf_trainer", HF),
    Contender("ours compiled", "ours", {**OURS, "compile": True}),
]


def measured(workload: Workload, contender: Contender, fastest: float) -> dict[str, Any]:
    """Of one contender alone."""
    with tempfile.TemporaryDirectory() as folder:
        (found,) = race(workload, [contender], Path(folder), threads=1)
    one = {"stage": workload.stage, "layers": workload.sizes.layers, "name": contender.name}
    if "absent" in found:
        return {**one, "absent": found["absent"]}
    flops, seconds = useful_flops(workload), found["median_wall_s"]
    return {**one, "step_s": seconds, "peak": found["peak"], "flops": flops, "loss": found["losses"][-1]} | rates(
        workload, seconds, flops, fastest
    )


def rates(workload: Workload, seconds: float, flops: float, fastest: float) -> dict[str, float]:
    rate = flops / seconds
    tokens = workload.counts()["tokens"] / seconds
    return {"tokens_per_second": tokens, "mfu": rate / PEAK, "mfu_of_matmul": rate / fastest}


def scaled(workload: Workload, rows: Sequence[dict[str, Any]], fastest: float) -> list[dict[str, Any]]:
    """Steps of all layers of the net, from those of two numbers of layers."""
    found = []
    for name in dict.fromkeys(each["name"] for each in rows):
        two = [each for each in rows if each["name"] == name and each["stage"] == "instruct" and "step_s" in each]
        if len(two) == 2:
            few, more = sorted(two, key=lambda each: each["layers"])
            a_layer = (more["step_s"] - few["step_s"]) / (more["layers"] - few["layers"])
            seconds = more["step_s"] + a_layer * (workload.sizes.layers - more["layers"])
            one = {"stage": "instruct, scaled", "layers": workload.sizes.layers, "name": name, "step_s": seconds}
            found.append(one | rates(workload, seconds, useful_flops(workload), fastest))
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a net of some thousand parameters, on the CPU")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step (16)")
    parser.add_argument("--steps", type=int, default=4, help="that are timed (4)")
    parser.add_argument("--layers", type=int, nargs=2, default=(8, 16), help="of instruct (8 16)")
    parser.add_argument("--seconds", type=float, default=320, help="after which nothing begins (320)")
    parser.add_argument("--to", type=Path, default=Path("runs/benchmarks/llava_on_gpu"))
    given = parser.parse_args(arguments)
    begin, device = time.monotonic(), "cpu" if given.tiny else "cuda"

    def workload(stage: str, layers: int | None = None) -> Workload:
        shape = {"batch": given.batch, "steps": given.steps, "layers": layers, "device": device, "random": True}
        return Workload("tiny" if given.tiny else "7B", stage, read_lengths(stage, None), **shape)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peak"
        side = 256 if given.tiny else 8192
        apart(lambda: file.write_text(str(matmul_peak(torch.device(device), side))))
        fastest = float(file.read_text())
    works = [workload("align"), workload("instruct_lora"), *(workload("instruct", layers) for layers in given.layers)]
    if given.tiny:
        works = [*works[:2], workload("instruct", 1), workload("instruct", 2)]
    rows: list[dict[str, Any]] = []
    # Compilation last: it is what takes long.
    for contenders in (CONTENDERS[:2], [] if given.tiny else CONTENDERS[2:]):
        for work in works:
            for each in contenders:
                late = time.monotonic() - begin > given.seconds
                one = {"stage": work.stage, "layers": work.sizes.layers, "name": each.name, "absent": "no time left"}
                rows.append(one if late else measured(work, each, fastest))
    rows += scaled(workload("instruct"), rows, fastest)
    found = {
        "machine": machine(1),
        "matmul_flops_per_second": fastest,
        "seconds": time.monotonic() - begin,
        "rows": rows,
    }
    given.to.mkdir(parents=True, exist_ok=True)
    write_json(given.to / "llava_on_gpu.json", found)
    shown = [each for each in rows if "step_s" in each]
    names = [f"{each['stage']} ({each['layers']}), {each['name']}" for each in shown]
    draw_values(given.to / "llava_on_gpu.svg", names, [100 * each["mfu"] for each in shown], "% of 989 TFLOP/s")
    for each in rows:
        name = f"{each['stage']:18}{each['layers']:4}  {each['name']:15}"
        if "absent" in each:
            print(name, each["absent"])
            continue
        peak = f"{each['peak'] / 1e9:7.1f} GB" if "peak" in each else f"{'':10}"
        speed = f"{each['step_s']:8.3f} s {each['tokens_per_second']:9.0f} tokens/s"
        print(f"{name}{speed}{each['mfu']:7.1%} of 989 TFLOP/s {each['mfu_of_matmul']:6.1%} of matmul {peak}")
    return found


if __name__ == "__main__":
    main()

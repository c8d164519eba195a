"""A training step of LLaVA here, under Trainer of transformers and under SFTTrainer of TRL: time, memory, losses.

    mllm bench training_speed [--net S --stage instruct --peers all --settings all --steps 8 --threads 1 --to FOLDER]

Every contender runs in a process of its own with the loop that its users have, on the same samples in the same order
from the same weights, and they take turns step by step. Counted is the whole cycle of a step, loader and bookkeeping
included, in CPU-seconds of the process; wall-clock seconds stand beside. Memory is the peak of the process in its
steps, less what the imported libraries take, which is the same for all. Losses must agree step by step with those of
the first contender: 1e-5 relative in float32, 1e-3 in bfloat16. The last column is what useful work takes at the speed
of a product of large matrices in the same precision, of what the step took.

Samples grouped by length are those of other steps: of 50 that the sampler sorts, as many as are counted, at even
distances, and their time is that of as many tokens. A contender that cannot train here is left out, with a sentence
why. TRL is in no environment of this project: `uv pip install trl` adds it.

Nets: S (tower 6 x 256, language model 6 x 256, 4,096 words), M (8 x 512, 32,000 words), tiny. Written to FOLDER:
training_speed.json and training_speed.svg.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contest.flops import matmul_flops_per_cpu_second, useful_flops
from contest.report import draw_bars, machine, table, write_json
from contest.turns import Contender, apart, race
from contest.weights import write_weights
from contest.workload import SIZES, Workload, read_lengths

GROUPED = {"train_sampling_strategy": "group_by_length"}
WORKERS = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True}
PEERS = [
    Contender("HF Trainer", "hf_trainer"),
    Contender("HF Trainer bf16", "hf_trainer", {"bf16": True}, precision="bf16"),
    Contender("HF Trainer grouped", "hf_trainer", GROUPED, own_order=True),
    Contender("HF Trainer bf16 grouped", "hf_trainer", {**GROUPED, "bf16": True}, "bf16", own_order=True),
    Contender("HF Trainer tuned", "hf_trainer", {**GROUPED, **WORKERS, "bf16": True}, "bf16", own_order=True),
    Contender("TRL SFTTrainer", "trl_sft", precision="bf16"),
    Contender("TRL SFTTrainer tuned", "trl_sft", {**WORKERS, "gradient_checkpointing": False}, "bf16"),
]
"""With their own defaults, or other settings; those of TRL are bf16 and activations that are computed again."""
BF16 = {"precision": "bf16", "language_checkpointing": "none"}
LADDER = [
    Contender("ours padded", "ours"),
    Contender("ours packed", "ours", {"pack": True}),
    Contender("ours packed bf16", "ours", {"pack": True, **BF16}, precision="bf16"),
    Contender("ours packed bf16 cached", "ours", {"pack": True, "cache": True, **BF16}, precision="bf16"),
    Contender("ours packed bf16 compiled", "ours", {"pack": True, "compile": True, **BF16}, precision="bf16"),
    Contender("ours padded bf16", "ours", BF16, precision="bf16"),
    Contender("ours padded cached", "ours", {"cache": True}),
]
"""Settings one by one: the second to fourth each add one to those before, the others are single ones."""


def chosen(known: Sequence[Contender], names: str) -> list[Contender]:
    """Those of `all`, `none`, or of names with commas between."""
    if names in ("all", "none"):
        return list(known) if names == "all" else []
    found = {each.name: each for each in known}
    for name in names.split(","):
        if name not in found:
            raise ValueError(f"training_speed: found contender {name!r}, expected some of {', '.join(found)}")
    return [found[name] for name in names.split(",")]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=SIZES, default="S")
    parser.add_argument("--stage", choices=("instruct", "align"), default="instruct")
    parser.add_argument("--peers", default="all", help="all, none, or names with commas between")
    parser.add_argument("--settings", default="all", help="of ours: all, none, or names with commas between")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step (16)")
    parser.add_argument("--per-image", type=int, default=1, help="samples of one image, one behind the other (1)")
    parser.add_argument("--lengths", type=Path, help="a file of tokens of prompt and answer, a sample a line")
    parser.add_argument("--steps", type=int, default=8, help="that are counted (8)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before these (2)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (1)")
    parser.add_argument("--to", type=Path, default=Path("runs/benchmarks/training_speed"))
    given = parser.parse_args(arguments)
    workload = Workload(
        net=given.net,
        stage=given.stage,
        lengths=read_lengths(given.stage, given.lengths),
        batch=given.batch,
        steps=given.steps,
        warmup=given.warmup,
        per_image=given.per_image,
    )
    contenders = [*chosen(PEERS, given.peers), *chosen(LADDER, given.settings)]
    before = machine(given.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        apart(lambda: write_weights(workload, folder))
        file, names = folder / "peaks.json", {each.precision for each in contenders}
        rate = matmul_flops_per_cpu_second
        apart(lambda: write_json(file, {name: rate(name, given.threads) for name in names}))
        peaks = json.loads(file.read_text(encoding="utf-8"))
        rows = race(workload, contenders, folder, given.threads)
    flops = useful_flops(workload)
    for each, contender in zip(rows, contenders, strict=True):
        if "absent" not in each:
            each["share_of_matmul"] = flops / each["median_cpu_s"] / peaks[contender.precision]
    about = {
        "flops": flops,
        "matmul_flops_per_cpu_second": peaks,
        "net": given.net,
        "stage": given.stage,
        "per_image": given.per_image,
        **workload.counts(),
    }
    found = {"machine": before, "load_after": machine(given.threads)["load"], "workload": about, "contenders": rows}
    given.to.mkdir(parents=True, exist_ok=True)
    write_json(given.to / "training_speed.json", found)
    tokens = f"{about['tokens']:,.0f} tokens a step of {about['padded_tokens']:,.0f} padded ones"
    draw_bars(given.to / "training_speed.svg", f"LLaVA {given.net}, {given.stage}: {tokens}", rows)
    print(tokens, table(rows), f"{given.to}/training_speed.json, .svg", sep="\n")
    if wrong := [each for each in rows if not each.get("agrees", True)]:
        names = ", ".join(each["name"] for each in wrong)
        raise SystemExit(f"training_speed: losses of {names} differ from those of {wrong[0]['beside']}")
    return found


if __name__ == "__main__":
    main()

"""`mllm memory EXPERIMENT`: what one rank needs in each stage, known before a run, on a machine without a GPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError, nearest
from lightning_mllm.commands.experiments import experiment_folder, experiment_name, hardware_file, order_of_stages
from lightning_mllm.commands.hardware import Hardware, at_once
from lightning_mllm.commands.launch import ParsedCLI, compose
from lightning_mllm.commands.run import overrides_of
from lightning_mllm.commands.stage_data import instantiated
from lightning_mllm.contracts import IGNORE, accumulation
from lightning_mllm.language.tokenizer import byte_tokenizer
from lightning_mllm.processing.full_rows import full_batch
from lightning_mllm.training.memory import Memory, step_memory
from lightning_mllm.training.module import MultimodalModule

SIZES = Path(str(files("lightning_mllm") / "defaults" / "language_sizes.yaml"))
GB = 10**9


def main(arguments: Sequence[str]) -> None:
    """`mllm memory EXPERIMENT [EXPERIMENT ...] [--hardware H] [--only STAGE] [settings]`."""
    parser = Arguments(
        "memory",
        description="Print the largest memory of one rank in each stage of an experiment, in GB (1e9 bytes): rows of"
        " max_length tokens, all of them supervised that can be. Nothing is trained; no weights, no tokenizer and no"
        " GPU are needed. The allocator, NCCL and CUDA itself need some 10 GB more.",
        epilog="Further options are settings, as in mllm run: --hardware.micro_batch=8, --STAGE.hardware.micro_batch=8",
    )
    parser.add_argument("experiments", type=Path, nargs="+", metavar="EXPERIMENT", help="as of mllm run")
    parser.add_argument("--hardware", default="gpu8", metavar="NAME", help="a file of _hardware (gpu8)")
    parser.add_argument("--only", metavar="STAGE", help="this stage alone")
    parser.add_argument("--images", type=int, default=1, metavar="N", help="images of each row (1)")
    given, overrides = parser.with_settings(arguments)
    if given.images < 0:
        raise ConfigError(f"--images: found {given.images}, expected 0 or more")
    commands = [
        (f"{experiment_name(folder)}/{stage}", command)
        for folder in map(experiment_folder, given.experiments)
        for stage, command in _commands(folder, given.hardware, given.only, overrides)
    ]
    categories = [each.name for each in fields(Memory)]
    rows: list[tuple[str, ...]] = [("stage", "rows x tokens", "supervised", "checkpointing", *categories, "peak")]
    for name, command in commands:
        words, memory = stage_row(command, given.images)
        numbers = [*(getattr(memory, each) for each in categories), memory.total]
        rows.append((name, *words, *(f"{number / GB:.1f}" for number in numbers)))
    print(markdown(rows), end="")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown whose first row is the head, its columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *others = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([head, "| " + " | ".join("-" * width for width in widths) + " |", *others]) + "\n"


def _commands(
    folder: Path, hardware: str, only: str | None, overrides: Sequence[str]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Each stage, and the command line by which `mllm fit` would train it."""
    stages = order_of_stages(folder)
    if only is not None and only not in stages:
        raise ConfigError(f"--only: found '{only}', expected one of {', '.join(stages)}{nearest(only, stages)}")
    chosen = [stage for stage in stages if only in (None, stage)]
    settings = overrides_of(overrides, stages, chosen)
    net = folder / "net.yaml"
    for stage in chosen:
        configs = [*([net] if net.is_file() else []), folder / f"{stage}.yaml", hardware_file(folder, hardware)]
        yield stage, ["fit", *(f"--config={each}" for each in configs), *settings[stage]]


def stage_row(command: Sequence[str], images: int = 1) -> tuple[list[str], Memory]:
    """What a rank computes at once, in words, and its memory, in the stage that a command line of `mllm fit` trains.

    Raises:
        ConfigError: The configuration is wrong, or its global batch is no multiple of what the ranks take at once.
    """
    found: dict[str, Any] = compose(command, ParsedCLI).resolved
    stage, hardware, trainer = found["stage"], found["hardware"], found["trainer"]
    rows, ranks = at_once(stage["micro_batch"], hardware["micro_batch"]), trainer["devices"]
    if not isinstance(ranks, int):
        raise ConfigError(f"trainer.devices: found {ranks!r}, expected a number to tell the memory of")
    world = ranks * trainer["num_nodes"]
    if (budget := hardware["token_budget"]) is None:
        accumulates = accumulation("stage.global_batch", stage["global_batch"], rows, world) > 1
    module = net_of({**found["model"], "init_args": {**found["model"]["init_args"], "stage": stage}})
    module.parallel = Hardware(**hardware)
    if budget is not None:  # as many full rows as have these tokens
        rows = max(1, -(-budget // module.processor.max_length))
        accumulates = stage["global_batch"] > rows * world
    batch = full_batch(module.processor, rows, images)
    sharded = "ShardedStrategy" in str(trainer["strategy"])
    memory, checkpointing = step_memory(module, batch, ranks=ranks, sharded=sharded, accumulates=accumulates)
    learned = batch.labels if batch.targets is None else batch.targets
    levels = [f"{name} {how}" for name, how in checkpointing.items() if how != "none"]
    return [
        f"{rows} x {batch.tokens.shape[1]}",
        str(int((learned != IGNORE).sum())),
        ", ".join(levels) or "none",
    ], memory


def net_of(model: dict[str, Any]) -> MultimodalModule:
    """The net of `model` in a resolved configuration, not built; published language models are read from `SIZES`."""
    known = {name: sizes for name, sizes in yaml.safe_load(SIZES.read_text()).items() if not name.startswith("_")}
    with tempfile.TemporaryDirectory() as folder:

        def replaced(value: object) -> object:
            """With a folder of sizes, and of a tokenizer of bytes, in place of each name."""
            if isinstance(value, dict):
                return {key: replaced(each) for key, each in value.items()}
            if isinstance(value, list):
                return [replaced(each) for each in value]
            if not isinstance(value, str) or value not in known:
                return value
            path = Path(folder, value.replace("/", "--"))
            byte_tokenizer().save_pretrained(path)
            if known[value]:
                (path / "config.json").write_text(json.dumps(known[value]), encoding="utf-8")
            return str(path)

        return instantiated(MultimodalModule, "model", replaced(model))

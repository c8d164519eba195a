"""`mllm data shares STAGE.yaml`: what each training source counts for in the loss, under each reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.launch import ParsedCLI, compose
from lightning_mllm.commands.signatures import import_class
from lightning_mllm.training.reduction import row_weights

DRAWS = 5000
"""Micro-batches that are drawn where several sources share one."""
MIXED, ALONE = "micro_batch_mean, mixed", "micro_batch_mean, group: source"


@dataclass(frozen=True)
class Stated:
    """A source of which only its size is known; a data module asks it for no sample here."""

    size: int
    captions: bool = True

    def load(self) -> None: ...

    def __len__(self) -> int:
        return self.size


def loss_shares(shares: Float[Tensor, " N"], tokens: Float[Tensor, " N"], size: int) -> dict[str, Float[Tensor, " N"]]:
    """Reduction -> what part of the loss's weight each source has.

    A source's samples all count as of its mean length, and the weight of the loss is that of all its tokens: the shares
    of the gradient are these where a token's gradient is as large in all sources.

    Args:
        shares: Of the samples, summing to 1.
        tokens: Mean supervised tokens of a sample.
        size: Samples of a published micro-batch.
    """
    of_tokens = shares * tokens
    drawn = torch.multinomial(
        shares.expand(DRAWS, -1), size, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    lengths = tokens[drawn].flatten()
    # A row's weight times its tokens, under the rule that training uses.
    weights = row_weights(lengths, "micro_batch_mean", size) * lengths
    mixed = torch.zeros_like(shares).index_add(0, drawn.flatten(), weights.to(shares))
    return {"token_mean": of_tokens / of_tokens.sum(), MIXED: mixed, ALONE: shares, "sample_mean": shares}


def stated(path: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a file states of the named sources.

    Raises:
        ConfigError: It cannot be read, or lacks a source or one of its numbers.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--lengths: {path}: cannot be read ({type(error).__name__}), expected YAML") from None
    for name in names:
        entry = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(entry, Mapping) or not all(
            isinstance(entry.get(key), int | float) and entry[key] > 0 for key in ("samples", "tokens")
        ):
            raise ConfigError(
                f"--lengths: {path}: found no samples and tokens of '{name}', expected both, as numbers above 0"
            )
    return {name: dict(found[name]) for name in names}


def print_shares(stage_file: Path, lengths: Path, console: Console) -> None:
    """The table of a stage.

    Raises:
        ConfigError: The stage's files or the lengths are wrong, or the stage has no sources.
    """
    beside = stage_file.with_name("net.yaml")
    configs = [beside] if beside.is_file() and beside != stage_file else []
    settings = compose(["fit", *(f"--config={each}" for each in [*configs, stage_file])], ParsedCLI).settings
    data, stage = settings["data"], settings["stage"]
    given = data["init_args"]
    names = list(given.get("train") or {})
    if not names:
        raise ConfigError(f"{stage_file}: found no data.train, expected sources whose shares can be told")
    known = stated(lengths, names)
    chosen = {
        key: given[key] for key in ("weights", "factors", "group", "global_batch", "per_device_batch") if key in given
    }
    sources: Any = {name: Stated(int(known[name]["samples"])) for name in names}
    counts = import_class(data["class_path"], "data")(train=sources, **chosen).order.counts
    size = given.get("per_device_batch") or given["micro_batch"]
    shares = torch.tensor([counts[name] for name in names], dtype=torch.double)
    shares = shares / shares.sum()
    tokens = torch.tensor([known[name]["tokens"] for name in names], dtype=torch.double)
    columns = loss_shares(shares, tokens, size)

    table = Table("source", title=f"{stage_file}: shares of the loss by reduction")
    for heading in ("samples", "share", "tokens", *columns):
        table.add_column(heading, justify="right")
    rows = {name: [k] for k, name in enumerate(names)}
    families: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        if family := known[name].get("family"):
            families.setdefault(str(family), []).append(k)
    for name, at in [*rows.items(), *families.items()]:
        if name in families and name == next(iter(families)):
            table.add_section()
        size_of = f"{sum(int(known[names[k]]['samples']) for k in at):,}"
        mean = float((shares[at] * tokens[at]).sum() / shares[at].sum())
        parts = [float(column[at].sum()) for column in [shares, *columns.values()]]
        table.add_row(name, size_of, f"{parts[0]:.1%}", f"{mean:.1f}", *(f"{part:.1%}" for part in parts[1:]))
    console.print(table)
    console.print(
        f"The stage: reduction {stage['reduction']}, group {given.get('group', 'none')}, micro-batches of {size}."
    )
    console.print(
        "A token counts alike whatever its source, and a source's samples as of its mean length; lengths and sizes are"
        f" those that {lengths.name} states:"
    )
    for name in names:
        console.print(f"  {name}: {known[name].get('from', 'no origin stated')}")


def main(arguments: Sequence[str], default: Path) -> None:
    """`mllm data shares STAGE.yaml [--lengths FILE]`.

    Args:
        arguments: Behind the verb.
        default: The file of lengths where none is named.
    """
    parser = Arguments(
        "data shares",
        description="What each training source of a stage counts for in the loss, under each reduction, from stated"
        " sizes and mean lengths: no data set is read.",
    )
    parser.add_argument("stage", type=Path, help="such as experiments/instructblip_vicuna7b/instruct.yaml")
    parser.add_argument(
        "--lengths", type=Path, default=default, help="YAML: source -> {samples, tokens} (InstructBLIP's)"
    )
    given = parser.parse_args(list(arguments))
    print_shares(given.stage, given.lengths, Console(width=160))

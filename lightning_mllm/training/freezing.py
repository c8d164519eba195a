"""Which parameters a stage trains, as a table of patterns, and the proof after the first step that it is so."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_mllm.collectives import all_reduce
from lightning_mllm.contracts import ParamGroup, Stage
from lightning_mllm.language.lora import Lora
from lightning_mllm.training.sharding import to_local
from lightning_mllm.training.stage import StageSettings


def what_trains(stage: StageSettings, published: Mapping[str, Stage]) -> tuple[dict[str, ParamGroup], Lora | None]:
    """Pattern over parameter names -> how a stage trains them; and its adapters.

    Args:
        published: The stages of the architecture, by name.

    Raises:
        ValueError: The architecture has no such stage, or none with adapters, and the settings say not what it trains.
    """
    own = published.get(stage.name)
    if own is None and stage.train is None:
        raise ValueError(
            f"stage.name: found {stage.name!r}, expected one of {sorted(published)}; "
            f"the nearest is {nearest(stage.name, published, 1)}"
        )
    adapted = own is not None and own.lora
    if stage.lora is not None and not adapted and stage.train is None:
        raise ValueError(
            f"stage.lora: stage {stage.name!r} trains no adapters, expected one of"
            f" {sorted(name for name, each in published.items() if each.lora)} or a stage.train that names them"
        )
    lora = stage.lora or (Lora() if adapted and stage.train != {} else None)
    table = dict(stage.train if stage.train is not None else {} if own is None else own.train)
    if lora is not None and not lora.targets and own is not None:
        lora = replace(lora, targets=own.lora_targets)
    if lora is not None and lora.bias == "lora_only":
        table["*.base_layer.bias"] = ParamGroup()
    return table, lora


def match(
    names: Iterable[str], table: Mapping[str, ParamGroup], tied: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Parameter name -> the one pattern that trains it; names absent from the result are frozen.

    Args:
        names: All parameter names of the net, each parameter once.
        table: Glob patterns (case-sensitive `fnmatch`, where `*` also crosses dots), each without those of its `but`.
        tied: Further names of parameters -> the one in `names`: a head that is the embedding.

    Raises:
        ValueError: A pattern, or one of its `but`, matches nothing; two patterns match one parameter; of the names of a
            tied parameter some are trained and some are not.
    """
    tied = tied or {}
    everything = [*names, *tied]
    trained: dict[str, str] = {}
    seen: set[str] = set()
    for pattern, how in table.items():
        found = _matched(pattern, how, everything)
        seen.update(found)
        for name in found:
            own = tied.get(name, name)
            if trained.setdefault(own, pattern) != pattern:
                raise ValueError(
                    f"stage.train: parameter {name!r} is matched by both {trained[own]!r} and {pattern!r},"
                    " expected one pattern"
                )
    for name, own in tied.items():
        if (name in seen) != (own in seen):
            one, other = (name, own) if name in seen else (own, name)
            raise ValueError(
                f"stage.train: {one!r} and {other!r} are one tied parameter, and {trained[own]!r} trains only the"
                " first, expected both or neither"
            )
    return trained


def _matched(pattern: str, how: ParamGroup, names: list[str]) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    for out in how.exclude if found else ():
        if not any(fnmatchcase(name, out) for name in found):
            raise ValueError(
                f"stage.train: {out!r}, which pattern {pattern!r} leaves out, matches none of its parameters, expected"
                f" something like {', '.join(map(repr, nearest(out, found)))}"
            )
    left = [name for name in found if not any(fnmatchcase(name, out) for out in how.exclude)]
    if not left:
        raise ValueError(
            f"stage.train: pattern {pattern!r} matches no parameter, expected something like"
            f" {', '.join(map(repr, nearest(pattern, names)))}"
        )
    return left


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `names` that look most like `name`."""
    names = list(dict.fromkeys(names))
    return difflib.get_close_matches(name, names, n=count, cutoff=0.0)


def freeze(module: nn.Module, table: Mapping[str, ParamGroup]) -> dict[str, str]:
    """Sets `requires_grad` of every parameter after the table; returns `match`'s answer."""
    parameters = dict(module.named_parameters())
    trained = match(parameters, table, tied_names(module))
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    return trained


def tied_names(module: nn.Module) -> dict[str, str]:
    """Second and further names of shared parameters -> the name by which `named_parameters` calls them."""
    own = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: own[id(parameter)] for name, parameter in every if own[id(parameter)] != name}


def frozen_modules(module: nn.Module) -> list[nn.Module]:
    """The outermost submodules that have parameters and train none of them."""
    found = []
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            found.append(child)
        else:
            found.extend(frozen_modules(child))
    return found


@dataclass(frozen=True, kw_only=True)
class FreezeRow:
    """Parameters of one part that are treated alike."""

    part: str
    """The attribute of the net: `vision`, `connector`, `language`, ..."""
    parameters: int
    trained: bool
    lr: float | None
    """None where frozen."""
    weight_decay: float | None
    dtype: str
    pattern: str = ""


def freeze_table(
    module: nn.Module, trained: Mapping[str, str], table: Mapping[str, ParamGroup], *, lr: float, weight_decay: float
) -> list[FreezeRow]:
    """One row for each part, pattern and dtype, in the order of the net."""
    counts: dict[tuple[str, str, str], int] = {}
    for name, parameter in module.named_parameters():
        key = (name.split(".")[0], trained.get(name, ""), str(parameter.dtype).removeprefix("torch."))
        counts[key] = counts.get(key, 0) + parameter.numel()
    rows = []
    for (part, pattern, dtype), count in counts.items():
        how = table[pattern] if pattern else None
        rows.append(
            FreezeRow(
                part=part,
                parameters=count,
                trained=how is not None,
                lr=None if how is None else how.rate(lr),
                weight_decay=None if how is None else (weight_decay if how.weight_decay is None else how.weight_decay),
                dtype=dtype,
                pattern=pattern,
            )
        )
    return rows


def print_freeze_table(rows: Iterable[FreezeRow], *, title: str, console: Console | None = None) -> None:
    """Shows the table in the terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("part", "parameters", "trained", "lr", "weight decay", "dtype"):
        table.add_column(column, justify="right" if column in ("parameters", "lr", "weight decay") else "left")
    for row in rows:
        table.add_row(
            row.part,
            f"{row.parameters:,}",
            row.pattern if row.trained else "frozen",
            "" if row.lr is None else f"{row.lr:g}",
            "" if row.weight_decay is None else f"{row.weight_decay:g}",
            row.dtype,
        )
    (console or Console()).print(table)


class GradientCheck:
    """Watches the first optimizer steps until every trained tensor has had a finite, non-zero gradient.

    Contract: `look` is called by every rank before each optimizer step, until `done`.

    Args:
        module: The net, frozen as its stage says.
        unused_parameters: Names of parameters that no loss reaches; a trained one is not waited for.

    Raises:
        ValueError: A name of `unused_parameters` is no parameter of the net.
    """

    def __init__(self, module: nn.Module, unused_parameters: Collection[str] = ()) -> None:
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
        for name in sorted(set(unused_parameters) - {*self.trained, *self.frozen}):
            near = ", ".join(map(repr, nearest(name, [*self.trained, *self.frozen])))
            raise ValueError(f"unused_parameters: {name!r} is no parameter of the net, expected something like {near}")
        self.waiting = set(self.trained) - set(unused_parameters)
        self.moved = False

    @property
    def done(self) -> bool:
        return not self.waiting

    def look(self, *, saw_image: bool, moves: bool) -> None:
        """Judges the gradients about to be used.

        Args:
            saw_image: Whether any rank had an image that owns slots in this step; without one the visual side has
                rightly a gradient of zero, and silent tensors are given until the first step with an image.
            moves: Whether this step's learning rate is above zero.

        Raises:
            ValueError: Naming every trained tensor with no, a zero or a non-finite gradient, and every frozen tensor
                that has one.
        """
        names = list(self.trained)
        touched = [name for name, p in self.frozen.items() if p.grad is not None]
        if touched:
            raise ValueError(f"gradient check: {_some(touched)} frozen, expected no gradient, found one")
        nonzero, wrong = _flags([self.trained[name].grad for name in names])
        broken = [name for name, bad in zip(names, wrong, strict=True) if bad]
        if broken:
            raise ValueError(f"gradient check: {_some(broken)} trained, expected a finite gradient, found inf or nan")
        self.waiting -= {name for name, moving in zip(names, nonzero, strict=True) if moving}
        if saw_image:
            # B of a fresh adapter is zero, and so is A's gradient until a step has moved B; the first step of a
            # warm-up has a rate of zero and moves nothing.
            silent = sorted(n for n in self.waiting if self.moved or ".lora_A." not in n)
            if silent:
                raise ValueError(
                    f"gradient check: {_some(silent)} trained, expected a non-zero gradient in the first steps,"
                    " found none: either the forward pass does not use it or its pattern should not name it"
                )
        self.moved = self.moved or moves


def _some(names: list[str], shown: int = 5) -> str:
    tail = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{tail} {'is' if len(names) == 1 else 'are'}"


def _flags(gradients: list[Tensor | None]) -> tuple[list[bool], list[bool]]:
    """(has a non-zero entry, has a non-finite entry) of each gradient, over all ranks."""
    device = next((g.device for g in gradients if g is not None), torch.device("cpu"))
    zero = torch.zeros((), dtype=torch.int32, device=device)
    flags = torch.stack(
        [
            torch.stack([zero, zero] if g is None else [(g != 0).any().int(), (~g.isfinite()).any().int()])
            for g in (None if g is None else to_local(g.detach()) for g in gradients)
        ]
    )
    all_reduce(flags, "max")
    nonzero, wrong = flags.bool().T.tolist()
    return nonzero, wrong

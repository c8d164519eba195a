"""Names of tensors here and elsewhere: one table, read in both directions.

A template is a name with `{n}` (or any other word) for an integer and `{...}` for all that is left:

    blocks.{n}.ln_1.{...}      <->  encoder.layers.{n}.layer_norm1.{...}
    blocks.{n}.attn.in_{...}   <->  (encoder.layers.{n}.q.{...}, ....k.{...}, ....v.{...}), with SPLIT_3
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.weights.files import pairs

Fields = dict[str, str]
Split = Callable[[Tensor], tuple[Tensor, ...]]
Join = Callable[[Sequence[Tensor]], Tensor]
Condition = Callable[[Mapping[str, Any], Mapping[str, str]], bool]

SPLIT_3: tuple[Split, Join] = (lambda tensor: tensor.chunk(3), lambda tensors: torch.cat(list(tensors)))
"""A fused query-key-value projection and its three parts."""


def _same(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def _only(tensors: Sequence[Tensor]) -> Tensor:
    (tensor,) = tensors
    return tensor


def _always(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a table."""

    ours: str | None
    """None: their tensor has no place here and is left out."""
    theirs: tuple[str, ...]
    """One template, or one for each part that `split` gives; they hold the same fields as `ours`."""
    split: Split = _same
    join: Join = _only
    when: Condition = _always
    """Whether the line holds, coming from theirs, for a folder's configuration and the name's fields."""


Turn = Callable[[Tensor], Tensor]
RuleLike = Rule | tuple[str, str] | tuple[str, str, tuple[Turn, Turn]] | tuple[str, Sequence[str], tuple[Split, Join]]


@dataclass(frozen=True)
class KeyMap:
    """A table of names, total in both directions: a name that no line matches is an error.

    The first line that matches counts. A transform pair may be a change of layout of one tensor or, with several
    templates on their side, a split and a join; the pair must be exact inverses.
    """

    rules: Sequence[RuleLike]
    aliases: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """Other names of theirs -> the one in `rules`; only read, never written."""

    @cached_property
    def table(self) -> tuple[Rule, ...]:
        return tuple(_rule(rule) for rule in self.rules)

    def __add__(self, other: KeyMap) -> KeyMap:
        return KeyMap((*self.table, *other.table), (*self.aliases, *other.aliases))

    def under(self, ours: str, theirs: str) -> KeyMap:
        """The same table for names that stand below a prefix on each side (`vision.`, `vision_tower.`)."""
        table = [
            replace(
                rule,
                ours=None if rule.ours is None else ours + rule.ours,
                theirs=tuple(theirs + template for template in rule.theirs),
            )
            for rule in self.table
        ]
        return KeyMap(table, [(theirs + other, theirs + name) for other, name in self.aliases])

    def to_theirs(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Their names and tensors, in the order of ours.

        Raises:
            ValueError: No line matches a name.
        """
        for name, tensor in tensors:
            rule, names = self.theirs(name)
            yield from zip(names, rule.split(tensor), strict=True)

    def to_ours(
        self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], config: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors; parts that are joined are held until the last of them comes.

        Raises:
            ValueError: No line matches a name, or a part of a joined tensor never came.
        """
        waiting: dict[str, dict[int, Tensor]] = {}
        sizes: dict[str, int] = {}
        for name, tensor in pairs(tensors):
            found = self.ours(name, config)
            if found is None:
                continue
            ours, rule, part = found
            waiting.setdefault(ours, {})[part] = tensor
            sizes[ours] = len(rule.theirs)
            if len(waiting[ours]) == len(rule.theirs):
                parts = waiting.pop(ours)
                yield ours, rule.join([parts[i] for i in range(len(parts))])
        for ours, parts in waiting.items():
            raise ValueError(f"tensor {ours!r} is made of {sizes[ours]} tensors, found {len(parts)} of them")

    def lazily(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> dict[str, Loader]:
        """Our names -> how to read and join each tensor of `tensors`, of which nothing is read yet.

        Raises:
            ValueError: As `to_ours`.
        """
        places: dict[str, dict[int, str]] = {}
        rules: dict[str, Rule] = {}
        for name in tensors:
            if (found := self.ours(name, config)) is not None:
                ours, rule, part = found
                places.setdefault(ours, {})[part] = name
                rules[ours] = rule
        for ours, names in places.items():
            if len(names) != len(rules[ours].theirs):
                whole = len(rules[ours].theirs)
                raise ValueError(f"tensor {ours!r} is made of {whole} tensors, found only {sorted(names.values())}")
        return {
            ours: Loader(tensors, tuple(names[i] for i in range(len(names))), rules[ours].join)
            for ours, names in places.items()
        }

    def theirs(self, name: str) -> tuple[Rule, tuple[str, ...]]:
        """The line for one of our names, and their names for it.

        Raises:
            ValueError: No line matches.
        """
        for rule in self.table:
            if rule.ours is not None and (fields := _match(rule.ours, name)) is not None:
                return rule, tuple(_fill(template, fields) for template in rule.theirs)
        raise ValueError(f"tensor {name!r} has no name in the other layout, expected one of {self._shown('ours')}")

    def ours(self, name: str, config: Mapping[str, Any] | None = None) -> tuple[str, Rule, int] | None:
        """Our name for one of theirs, its line and which part of it that is; None if it is left out on purpose.

        Raises:
            ValueError: No line matches.
        """
        for other, usual in self.aliases:
            if (fields := _match(other, name)) is not None:
                name = _fill(usual, fields)
                break
        for rule in self.table:
            for part, template in enumerate(rule.theirs):
                fields = _match(template, name)
                if fields is not None and rule.when(config or {}, fields):
                    return None if rule.ours is None else (_fill(rule.ours, fields), rule, part)
        raise ValueError(f"tensor {name!r} has no name here, expected one of {self._shown('theirs')}")

    def _shown(self, side: str) -> str:
        names = [rule.ours if side == "ours" else rule.theirs[0] for rule in self.table]
        return ", ".join(repr(name) for name in names if name)


@dataclass(frozen=True)
class Loader:
    """One tensor, read and joined when it is asked for."""

    source: Mapping[str, Tensor]
    names: tuple[str, ...]
    join: Join = _only

    def __call__(self) -> Tensor:
        return self.join([self.source[name] for name in self.names])


def _rule(rule: RuleLike) -> Rule:
    if isinstance(rule, Rule):
        return rule
    ours, theirs, *pair = rule
    if not pair:
        return Rule(ours=ours, theirs=(str(theirs),))
    there: Any
    back: Any
    there, back = pair[0]
    if isinstance(theirs, str):
        return Rule(ours=ours, theirs=(theirs,), split=lambda x: (there(x),), join=lambda xs: back(_only(xs)))
    return Rule(ours=ours, theirs=tuple(theirs), split=there, join=back)


_patterns: dict[str, re.Pattern[str]] = {}


def _match(template: str, name: str) -> Fields | None:
    if template not in _patterns:
        pieces = re.split(r"\{(\.\.\.|\w+)\}", template)
        pattern = "".join(
            re.escape(piece) if i % 2 == 0 else "(?P<rest>.+)" if piece == "..." else rf"(?P<{piece}>\d+)"
            for i, piece in enumerate(pieces)
        )
        _patterns[template] = re.compile(pattern)
    found = _patterns[template].fullmatch(name)
    return None if found is None else found.groupdict()


def _fill(template: str, fields: Fields) -> str:
    return re.sub(r"\{(\.\.\.|\w+)\}", lambda found: fields["rest" if found[1] == "..." else found[1]], template)

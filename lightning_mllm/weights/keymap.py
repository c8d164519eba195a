"""Names of tensors here and elsewhere: one table, read in both directions.

A template is a name with `{n}` (or any other word) for an integer and `{...}` for all that is left:

    blocks.{n}.ln_1.{...}      <->  encoder.layers.{n}.layer_norm1.{...}
    blocks.{n}.attn.in_{...}   <->  (encoder.layers.{n}.q.{...}, ....k.{...}, ....v.{...}), with SPLIT_3
    (h.{n}.q.{...}, ....k.{...}, ....v.{...})   <->  h.{n}.qkv.{...}, with SPLIT_3
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_mllm.weights.files import pairs

Fields = dict[str, str]
Names = tuple[str, ...]
Split = Callable[[Tensor], tuple[Tensor, ...]]
Join = Callable[[Sequence[Tensor]], Tensor]
Change = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Condition = Callable[[Mapping[str, Any], Mapping[str, str]], bool]

SPLIT_3: tuple[Split, Join] = (lambda tensor: tensor.chunk(3), lambda tensors: torch.cat(list(tensors)))
"""A fused query-key-value projection and its three parts."""


def _same(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors


def _only(tensors: Sequence[Tensor]) -> Tensor:
    (tensor,) = tensors
    return tensor


def _always(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a table."""

    ours: str | Names | None
    """One template, or several whose tensors are joined into theirs; None: theirs has no place here and is left out."""
    theirs: Names
    """One template, or several whose tensors are joined into ours; they hold the same fields as `ours`."""
    there: Change = _same
    """Our tensors as theirs."""
    back: Change = _same
    """Their tensors as ours."""
    when: Condition = _always
    """Whether the line holds, coming from theirs, for a folder's configuration and the name's fields."""

    @property
    def here(self) -> Names:
        """The templates of `ours`."""
        return () if self.ours is None else (self.ours,) if isinstance(self.ours, str) else self.ours


Turn = Callable[[Tensor], Tensor]
RuleLike = (
    Rule
    | tuple[str, str]
    | tuple[str, str, tuple[Turn, Turn]]
    | tuple[str, Sequence[str], tuple[Split, Join]]
    | tuple[Sequence[str], str, tuple[Split, Join]]
)


class Found(NamedTuple):
    """What the line that holds for a name says of it."""

    rule: Rule
    part: int
    """Which of the line's templates on its side the name is."""
    ours: Names
    """All names of the line; none where their tensor is left out."""
    theirs: Names


@dataclass(frozen=True)
class KeyMap:
    """A table of names, total in both directions: a name that no line matches is an error.

    The first line that matches counts. A transform pair may be a change of layout of one tensor or, with several
    templates on one side, a split and a join; the pair must be exact inverses.
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
                ours=None if rule.ours is None else tuple(ours + template for template in rule.here),
                theirs=tuple(theirs + template for template in rule.theirs),
            )
            for rule in self.table
        ]
        return KeyMap(table, [(theirs + other, theirs + name) for other, name in self.aliases])

    def to_theirs(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Their names and tensors, in the order of ours; parts that are joined are held until the last of them comes.

        Raises:
            ValueError: No line matches a name, or a part of a joined tensor never came.
        """
        parts = _Parts()
        for name, tensor in tensors:
            rule, part, ours, theirs = self.theirs(name)
            if (whole := parts.add(theirs, part, tensor, len(ours))) is not None:
                yield from zip(theirs, rule.there(whole), strict=True)
        parts.check()

    def to_ours(
        self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], config: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors; parts that are joined are held until the last of them comes.

        Raises:
            ValueError: As `to_theirs`.
        """
        parts = _Parts()
        for name, tensor in pairs(tensors):
            if (found := self.ours(name, config)) is None:
                continue
            rule, part, ours, theirs = found
            if (whole := parts.add(ours, part, tensor, len(theirs))) is not None:
                yield from zip(ours, rule.back(whole), strict=True)
        parts.check()

    def lazily(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> dict[str, Loader]:
        """Our names -> how to read and join each tensor of `tensors`, of which nothing is read yet.

        Raises:
            ValueError: As `to_ours`.
        """
        places: dict[Names, dict[int, str]] = {}
        lines: dict[Names, Found] = {}
        for name in tensors:
            if (found := self.ours(name, config)) is not None:
                places.setdefault(found.ours, {})[found.part] = name
                lines[found.ours] = found
        loaders: dict[str, Loader] = {}
        for names, sources in places.items():
            found = lines[names]
            if len(sources) != len(found.theirs):
                whole = len(found.theirs)
                raise ValueError(
                    f"tensor {names[0]!r} is made of {whole} tensors, found only {sorted(sources.values())}"
                )
            ordered = tuple(sources[i] for i in range(len(sources)))
            loaders |= {name: Loader(tensors, ordered, found.rule.back, i) for i, name in enumerate(names)}
        return loaders

    def theirs(self, name: str) -> Found:
        """The line for one of our names.

        Raises:
            ValueError: No line matches.
        """
        for rule in self.table:
            for part, template in enumerate(rule.here):
                if (fields := _match(template, name)) is not None:
                    return _found(rule, part, fields)
        raise ValueError(f"tensor {name!r} has no name in the other layout, expected one of {self._shown('ours')}")

    def ours(self, name: str, config: Mapping[str, Any] | None = None) -> Found | None:
        """The line for one of their names; None if it is left out on purpose.

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
                    return None if rule.ours is None else _found(rule, part, fields)
        raise ValueError(f"tensor {name!r} has no name here, expected one of {self._shown('theirs')}")

    def _shown(self, side: str) -> str:
        names = [rule.here if side == "ours" else rule.theirs for rule in self.table]
        return ", ".join(repr(each[0]) for each in names if each)


class _Parts:
    """Tensors that wait for those they are joined with."""

    def __init__(self) -> None:
        self.waiting: dict[Names, tuple[int, dict[int, Tensor]]] = {}

    def add(self, goal: Names, part: int, tensor: Tensor, count: int) -> list[Tensor] | None:
        """All `count` tensors that `goal` is made of, once the last of them has come."""
        _, held = self.waiting.setdefault(goal, (count, {}))
        held[part] = tensor
        if len(held) < count:
            return None
        del self.waiting[goal]
        return [held[i] for i in range(count)]

    def check(self) -> None:
        """ValueError if anything still waits."""
        for goal, (count, held) in self.waiting.items():
            raise ValueError(f"tensor {goal[0]!r} is made of {count} tensors, found {len(held)} of them")


@dataclass(frozen=True)
class Loader:
    """One tensor, read and joined or cut out when it is asked for."""

    source: Mapping[str, Tensor]
    names: Names
    back: Change = _same
    part: int = 0
    """Which of the tensors that `back` gives."""

    def __call__(self) -> Tensor:
        return self.back([self.source[name] for name in self.names])[self.part]


def _rule(rule: RuleLike) -> Rule:
    if isinstance(rule, Rule):
        return rule
    ours, theirs, *pair = rule
    here, there = (tuple([side] if isinstance(side, str) else side) for side in (ours, theirs))
    if not pair:
        return Rule(ours=here, theirs=there)
    one: Any
    other: Any
    one, other = pair[0]
    if len(there) > 1:
        return Rule(ours=here, theirs=there, there=lambda xs: one(_only(xs)), back=lambda xs: (other(xs),))
    if len(here) > 1:
        return Rule(ours=here, theirs=there, there=lambda xs: (other(xs),), back=lambda xs: one(_only(xs)))
    return Rule(ours=here, theirs=there, there=lambda xs: (one(_only(xs)),), back=lambda xs: (other(_only(xs)),))


def _found(rule: Rule, part: int, fields: Fields) -> Found:
    return Found(rule, part, *(tuple(_fill(each, fields) for each in side) for side in (rule.here, rule.theirs)))


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

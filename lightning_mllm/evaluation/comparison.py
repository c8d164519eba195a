"""Runs compared: what `mllm compare` finds out, as data.

Every other side is compared with the first. Two families of tests are corrected, each by itself, for how many they are
(Holm): the headline scores of all test sets, and the same of every kind of question. All other scores are shown with
their intervals, and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from lightning_mllm.evaluation.bootstrap import Interval
from lightning_mllm.evaluation.compared_runs import SEED_SETTING, Side, differing
from lightning_mllm.evaluation.matched import Contrast, Matched
from lightning_mllm.evaluation.paired import (
    DRAWS,
    LEVEL,
    POWER,
    Paired,
    between_seeds,
    holm,
    means,
    paired,
    together,
    values_of,
)
from lightning_mllm.evaluation.tasks import ScoreInfo, find_score

Verdict = Literal["win", "tie", "loss", ""]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One score of the first side minus that of another, on the samples that both answered."""

    first: str
    other: str
    """Names of the sides."""
    score: str
    """As in `test.json`."""
    kind: str
    """Of the questions; empty for all."""
    info: ScoreInfo
    part: str
    values: tuple[float, float]
    """Of the two sides on these samples, means over seeds."""
    difference: Interval
    unpaired: Interval
    """What its interval would be if the sides had been tested on different pictures."""
    pictures: Interval | None
    """Its interval for these seeds, over pictures alone; None where no seeds widen it."""
    p: float
    p_holm: float | None
    """Adjusted for the number of tests; None where it is none of them."""
    tests: int
    detectable: float
    """The difference that this test would find in 80 % of such tests, after the correction."""
    detectable_of_nets: float
    """The same of a test over pictures alone, which is about these trained nets."""
    samples: int
    clusters: int
    better: int | None
    """Samples that the first side answers better; None where single answers have no score."""
    worse: int | None

    @property
    def narrower(self) -> float:
        """How wide the interval is beside the unpaired one."""
        unpaired = self.unpaired.high - self.unpaired.low
        return (self.difference.high - self.difference.low) / unpaired if unpaired else 1.0

    @property
    def verdict(self) -> Verdict:
        """For the first side; empty where no test is made, or neither end is better."""
        if self.p_holm is None or self.info.higher_is_better is None:
            return ""
        if self.p_holm >= 1 - LEVEL:
            return "tie"
        return "win" if (self.difference.value > 0) == self.info.higher_is_better else "loss"

    @property
    def sentence(self) -> str:
        """The verdict in plain words."""
        d = self.info.digits
        found = self.difference
        told = f"the difference {found.value:.{d}f} [{found.low:.{d}f}, {found.high:.{d}f}]"
        if self.pictures is not None:
            told += f" over pictures and seeds ([{self.pictures.low:.{d}f}, {self.pictures.high:.{d}f}] over pictures)"
        if not self.detectable:
            return f"{self.verdict or 'no test'}: the scores never differ, so that no power can be stated"
        if not self.verdict:
            return told
        many = f", corrected for {self.tests} tests" if self.tests > 1 else ""
        p = f"p {'< 0.001' if (self.p_holm or 0) < 0.001 else f'= {self.p_holm:.3f}'}{many}"
        power = f"a difference of {self.detectable:.{d}f} would have been found in {POWER:.0%} of such tests"
        nets = f", of {self.detectable_of_nets:.{d}f} between these nets" if self.pictures is not None else ""
        return f"{self.verdict}: {told}, {p}; {power.replace('%', ' %')}{nets}"


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """One score over the seeds of a side."""

    side: str
    score: str
    info: ScoreInfo
    part: str
    values: tuple[float, ...]
    """Of each seed, on the samples that all answered."""
    deviation: float
    """Standard deviation between seeds."""
    between: Interval
    """The mean, and the interval over other seeds, of these pictures."""
    within: Interval
    """The mean, and the interval over other pictures, of these seeds."""


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """Samples of one set on which two sides differ."""

    first: str
    other: str
    task: str
    part: str
    samples: tuple[Contrast, ...]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What differs between the configurations of two sides; of several seeds the first's."""

    other: str
    stage: str
    """Of those that the compared stage starts from; empty for itself."""
    key: str
    values: tuple[object, object]
    """Or '(not set)'."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sides, and what is between the first and each other one."""

    sides: tuple[Side, ...]
    headlines: tuple[Difference, ...]
    kinds: tuple[Difference, ...]
    further: tuple[Difference, ...]
    seeds: tuple[SeedSpread, ...]
    contrasts: tuple[Contrasts, ...]
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]
    """What a reader must know: sets and samples that were left out, what intervals are about."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A difference before its family of tests is known."""

    first: str
    other: str
    score: str
    kind: str
    values: tuple[float, float]
    paired: Paired
    samples: int
    clusters: int
    better: int | None = None
    worse: int | None = None

    def told(self, p_holm: float | None, tests: int) -> Difference:
        known = find_score(self.score)
        assert known is not None, self.score
        alpha = (1 - LEVEL) / max(tests, 1)
        return Difference(
            **{name: value for name, value in vars(self).items() if name != "paired"},
            info=known[0],
            part=known[1],
            difference=self.paired.interval(),
            unpaired=self.paired.unpaired_interval(),
            pictures=self.paired.pictures_interval(),
            p=self.paired.p,
            p_holm=p_holm,
            tests=tests,
            detectable=self.paired.detectable(alpha=alpha),
            detectable_of_nets=self.paired.detectable(alpha=alpha, seeds=False),
        )


def compare(sides: Sequence[Side], *, draws: int = DRAWS) -> Comparison:
    """Compares every other side with the first; of one side alone, its seeds.

    Args:
        draws: of the bootstrap.

    Raises:
        ValueError: there is one side of one run, no set that all of a pair were tested on, or samples differ in their
            references.
    """
    first, *others = sides
    if not others and len(first.runs) == 1:
        raise ValueError(f"compare: found {first.name} alone, expected another run or several seeds of this one")
    found: list[tuple[list[_Found], list[_Found]]] = []
    contrasts, notes = [], []
    for other in others:
        for name in _common_sets(first, other, notes):
            matched = Matched.of(first, other, name)
            for side, alone in zip((first, other), matched.alone, strict=True):
                if alone:
                    notes.append(f"{name}: {alone:,} samples that {side.name} alone answered are left out.")
            found.append(_differences(first, other, matched, draws, _one_recipe(first, other)))
            contrasts.append(_contrasts(first, other, matched))
    every = list(chain.from_iterable(scores for scores, _ in found))
    headlines = [each for each in every if _has_a_better_end(each)]
    notes += _about_seeds(sides)
    return Comparison(
        sides=tuple(sides),
        headlines=_family(headlines),
        kinds=_family([each for _, kinds in found for each in kinds if _has_a_better_end(each)]),
        further=tuple(each.told(None, 0) for each in every if each not in headlines),
        seeds=tuple(spread for side in sides if len(side.runs) > 1 for spread in _seeds(side, draws)),
        contrasts=tuple(each for each in contrasts if each.samples),
        settings=tuple(setting for other in others for setting in _settings(first, other)),
        notes=tuple(notes),
    )


def _has_a_better_end(each: _Found) -> bool:
    """Whether it is a headline score whose difference can be a win, and so is tested."""
    known = find_score(each.score)
    return known is not None and known[0].headline and known[0].higher_is_better is not None


def _common_sets(first: Side, other: Side, notes: list[str]) -> list[str]:
    """The sets that every run of both sides answered; the others are noted."""
    runs = [*first.runs, *other.runs]
    known = list(dict.fromkeys(name for run in runs for name in run.answers))
    common = [name for name in known if all(name in run.answers for run in runs)]
    for name in [each for each in known if each not in common]:
        lacking = ", ".join(run.name for run in runs if name not in run.answers)
        notes.append(f"{name} is left out, for {lacking} was not tested on it.")
    if not common:
        sets = "; ".join(f"{run.name}: {', '.join(run.answers)}" for run in runs)
        raise ValueError(f"compare: found no test set that all runs answered ({sets}), expected one")
    return common


def _differences(
    first: Side, other: Side, matched: Matched, draws: int, one_recipe: bool
) -> tuple[list[_Found], list[_Found]]:
    """Of all scores, and of the headline score of each kind."""
    kinds = matched.kinds()
    sides = [[matched.scores(run) for run in side] for side in (matched.first, matched.other)]
    if kinds:
        sides = [
            [together([whole, matched.scores_of_kinds(run, kinds)]) for whole, run in zip(wholes, side, strict=True)]
            for wholes, side in zip(sides, (matched.first, matched.other), strict=True)
        ]
    every = paired(sides[0], sides[1], matched.clusters, one_recipe=one_recipe, samples=draws)
    exact = [values_of(side, matched.clusters).mean(0) for side in sides]
    suffix = f"_{matched.first[0].part}" if matched.first[0].part else ""
    names = matched.score_names()
    gap = matched.per_sample[0] - matched.per_sample[1]
    found = []
    for k, each in enumerate(every):
        kind = list(kinds)[k - len(names)] if k >= len(names) else ""
        where = kinds[kind] if kind else slice(None)
        counts = {"better": int((gap[where] > 1e-9).sum()), "worse": int((gap[where] < -1e-9).sum())}
        found.append(
            _Found(
                first=first.name,
                other=other.name,
                score=(names[0] if kind else names[k]) + suffix,
                kind=kind,
                values=(float(exact[0][k]), float(exact[1][k])),
                paired=each,
                samples=len(matched.cluster[where]),
                clusters=len(set(matched.cluster[where].tolist())),
                **(counts if kind or k == 0 else {}),
            )
        )
    return found[: len(names)], found[len(names) :]


def _family(tests: Sequence[_Found]) -> tuple[Difference, ...]:
    adjusted = holm([each.paired.p for each in tests])
    return tuple(each.told(p, len(tests)) for each, p in zip(tests, adjusted, strict=True))


def _seeds(side: Side, draws: int) -> list[SeedSpread]:
    found = []
    for name in (each for each in side.runs[0].answers if all(each in run.answers for run in side.runs)):
        matched = Matched.of(Side(name=side.name, runs=side.runs[:1]), Side(name=side.name, runs=side.runs[1:]), name)
        functions = [matched.scores(run) for run in (*matched.first, *matched.other)]
        within = means(functions, matched.clusters, samples=draws)
        single = values_of(functions, matched.clusters)
        for k, score in enumerate(matched.score_names()):
            part = matched.first[0].part
            known = find_score(score)
            assert known is not None
            values = tuple(single[:, k].tolist())
            mean = between_seeds(values)
            found.append(
                SeedSpread(
                    side=side.name,
                    score=f"{score}_{part}" if part else score,
                    info=known[0],
                    part=part,
                    values=values,
                    deviation=(sum((v - mean.value) ** 2 for v in values) / (len(values) - 1)) ** 0.5,
                    between=mean,
                    within=within[k],
                )
            )
    return found


def _contrasts(first: Side, other: Side, matched: Matched) -> Contrasts:
    own = matched.first[0]
    pictures = {
        example["id"]: example["picture"]
        for run in (*first.runs, *other.runs)
        for example in run.tested.examples
        if (example["task"], example["part"], example["blind"]) == (own.task, own.part, False)
    }
    samples = () if own.task in ("perplexity", "loss") else tuple(matched.contrasts(pictures))
    return Contrasts(first=first.name, other=other.name, task=own.task, part=own.part, samples=samples)


def _settings(first: Side, other: Side) -> list[Setting]:
    """Of the compared stages, and of the earlier ones that are called alike."""
    one, two = first.runs[0].settings, other.runs[0].settings
    return [
        Setting(other=other.name, stage=stage, key=key, values=(own, others))
        for stage in one
        if stage in two and one[stage] and two[stage]
        for key, own, others in differing(one[stage], two[stage])
    ]


def _one_recipe(first: Side, other: Side) -> bool:
    """Whether the two differ in their seed, and in nothing else."""
    known = all(settings for run in (*first.runs, *other.runs) for settings in run.settings.values())
    return known and {each.key for each in _settings(first, other)} == {SEED_SETTING}


def _about_seeds(sides: Sequence[Side]) -> list[str]:
    notes = [
        f"{sides[0].name} and {other.name} are seeds of one recipe: what they differ in counts as what seeds make."
        for other in sides[1:]
        if _one_recipe(sides[0], other)
    ]
    single = [side.name for side in sides if len(side.runs) == 1]
    if len(sides) > 1 and len(single) == len(sides) and len(notes) < len(sides) - 1:
        notes.append(
            "Each side is one trained net: intervals say how far other pictures would change a difference, not how far"
            " other seeds would; mllm run --seeds trains several."
        )
    elif len(sides) > 1 and single and not notes:
        notes.append(f"{', '.join(single)}: one seed, taken to vary from seed to seed as the others do.")
    return notes

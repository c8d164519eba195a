"""What is wrong with the records, the texts and the pictures of the sets of a stage."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import huggingface_hub
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.signatures import import_class, parameters_of
from lightning_mllm.commands.stage_data import ComposedStage, SampleSet, StageDataModule, data_module
from lightning_mllm.contracts import OverlongError, Sample
from lightning_mllm.processing.image_in_memory import ImageInMemory
from lightning_mllm.processing.images import ImagePolicy, decode_image
from lightning_mllm.processing.processor import Processor

Watch = Callable[[str, Sequence[int]], Iterator[int]]
"""Gives the indices of a loop with this title, and shows how far it is."""
CHUNK = 256
"""Samples whose texts are checked at once, by one of several processes."""
PICTURE = ImageInMemory(Image.new("RGB", (1, 1)))
"""In place of every picture, where texts alone are checked."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    where: str
    """File and record; empty where that is not known."""
    id: str
    rule: str

    @property
    def kind(self) -> str:
        """The rule without what is a record's own in it: names, numbers, paths."""
        masked = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "'...'", self.rule)
        masked = re.sub(r"\S*/\S*|\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?)\b", "...", masked, flags=re.IGNORECASE)
        return re.sub(r"\d[\d,.]*\d|\d", "N", masked)[:160]

    @property
    def sentence(self) -> str:
        """All of it."""
        return ": ".join(each for each in (self.where, f"id {self.id}" if self.id else "", self.rule) if each)


@dataclass(kw_only=True)
class CheckedSet:
    """What was found in a set; None for what was not counted."""

    stage: str
    name: str
    """As in `data.SPLIT.NAME`; empty for a stage whose configuration is wrong."""
    records: int | None = None
    bad: int | None = None
    overlong: int | None = None
    nothing: int | None = None
    pictured: int | None = None
    decoded: int | None = None
    broken: int | None = None
    unusable: int = 0
    """Samples that cannot be encoded, whatever their pictures are."""
    stops: bool = False
    """Whether a run would stop at it."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class LenientStage(ComposedStage):
    """The same stage, but its sources leave out records that break a rule, and keep a sentence about each.

    They are made so: what a source keeps in files is known by what it was made with.
    """

    @cached_property
    def data(self) -> StageDataModule:
        return data_module(lenient(self.data_settings))


def lenient(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in which every class that takes `bad_records` is told to skip them."""
    changed: dict[str, Any] = {key: _lenient(each) for key, each in settings.items()}
    path = settings.get("class_path")
    if isinstance(path, str) and "bad_records" in (parameters_of(import_class(path, "data")) or {}):
        changed["init_args"] = {**(changed.get("init_args") or {}), "bad_records": "skip"}
    return changed


def _lenient(value: object) -> object:
    if isinstance(value, list):
        return [_lenient(each) for each in value]
    return lenient(value) if isinstance(value, Mapping) else value


def check_sets(stages: Sequence[ComposedStage], images: int | None, watch: Watch) -> Iterator[CheckedSet]:
    """Every set of the stages, one after another.

    Args:
        images: Samples of each set whose pictures are decoded, a fixed random choice; None for all.
        watch: Shows how far it is.
    """
    for stage in stages:
        try:
            strict = {each.title: each for each in stage.sets()}
            own = LenientStage(experiment=stage.experiment, name=stage.name, command=stage.command)
            vars(own)["cli"] = stage.cli  # parsed once
            sets = list(own.sets())
        except ConfigError as error:
            yield CheckedSet(
                stage=stage.title, name="", stops=True, findings=[Finding(where="", id="", rule=str(error))]
            )
            continue
        processor, without = _processor_of(own)
        if not sets:
            yield CheckedSet(stage=stage.title, name="", notes=["found no set to check"])
        for each in sets:
            checked = CheckedSet(stage=stage.title, name=each.title, notes=[without] if without else [])
            _check(each, strict[each.title].source.bad_records == "refuse", processor, images, watch, checked)
            yield checked


def _processor_of(stage: ComposedStage) -> tuple[object, str]:
    """The processor of the net, or None and why there is none."""
    with offline():
        try:
            return stage.processor, ""
        except ValueError as error:
            return None, f"records and pictures are checked, not tokens, for the processor cannot be made: {error}"


@contextmanager
def offline() -> Iterator[None]:
    """Nothing is downloaded from the hub meanwhile: what is not on this machine is told, at once."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _check(
    each: SampleSet, refuses: bool, processor: object, images: int | None, watch: Watch, checked: CheckedSet
) -> None:
    try:
        list(watch(f"{checked.stage} {each.title}: reading", []))
        each.source.load()
    except ValueError as error:
        sentences = list(getattr(each.source, "skipped", ()))
        checked.findings += [located(sentence) for sentence in sentences] or [Finding(where="", id="", rule=str(error))]
        checked.bad, checked.stops = len(sentences) or None, True
        return
    checked.findings += [located(sentence) for sentence in getattr(each.source, "skipped", ())]
    checked.records, checked.bad = len(each.source) + len(checked.findings), len(checked.findings)
    checked.stops = refuses and checked.bad > 0
    if each.rows:
        return  # its documents were checked; rows are cut from them
    _check_texts(each, processor, watch, checked)
    _check_pictures(each, processor, images, watch, checked)
    limits = getattr(each.data, "bad_limits", None) if each.split == "train" else None
    allowed = 0.0 if refuses else 1.0 if limits is None else limits.share
    checked.stops |= (checked.unusable + (checked.broken or 0)) > allowed * len(each)


def _check_texts(each: SampleSet, processor: object, watch: Watch, checked: CheckedSet) -> None:
    """Every sample, without pixels."""
    light = without_pixels(processor) if isinstance(processor, Processor) else None
    policy = getattr(each.data, "overlong", "mask") if each.split == "train" else "mask"
    total = len(each)
    chunks = [range(first, min(first + CHUNK, total)) for first in range(0, total, CHUNK)]
    title = f"{checked.stage} {each.title}: texts"
    for found in in_processes(partial(_texts, each, light, policy), chunks, lambda: watch(title, range(len(chunks)))):
        checked.findings += found.findings
        checked.unusable += found.unusable
        checked.stops |= found.stops
        if light is not None:
            checked.overlong = (checked.overlong or 0) + found.overlong
            checked.nothing = (checked.nothing or 0) + found.nothing
    checked.bad = (checked.bad or 0) + checked.unusable


@dataclass(kw_only=True)
class _Texts:
    """What was found in some samples."""

    overlong: int = 0
    nothing: int = 0
    unusable: int = 0
    stops: bool = False
    findings: list[Finding] = field(default_factory=list)


def _texts(each: SampleSet, light: Processor | None, policy: str, indices: range) -> _Texts:
    found = _Texts()
    for index in indices:
        try:
            sample, _ = each.sample(index)
            if light is None:
                continue
            row = light.encode(replace(sample, images=(PICTURE,) * len(sample.images)), generate=each.generates)
        except ValueError as error:
            long = isinstance(error, OverlongError)
            found.overlong += long
            if long and policy == "drop":
                continue
            found.findings.append(_finding(each, index, error))
            found.stops |= long and policy == "stop"
            found.unusable += 1
            continue
        kinds = [note.partition(":")[0] for note in row.notes]
        found.overlong += "overlong" in kinds
        found.nothing += "nothing learned" in kinds
        if policy == "stop" and "overlong" in kinds:
            found.stops = True
            rule = next(note for note in row.notes if note.startswith("overlong")).removeprefix("overlong: ")
            found.findings.append(Finding(where=each.where(index), id=sample.id, rule=rule))
    return found


_work: Callable[[range], _Texts] | None = None
"""What forked processes do; they have it from the one that they are forked from."""


def _done(job: range) -> _Texts:
    assert _work is not None
    return _work(job)


def in_processes(
    work: Callable[[range], _Texts], jobs: Sequence[range], watch: Callable[[], Iterator[int]]
) -> Iterator[_Texts]:
    """`work` of each job, in their order, on all cores where there are many jobs.

    Args:
        watch: Gives a number for each job, one after another, as they are done.
    """
    global _work
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if min(cores, len(jobs) // 4) < 2:
        yield from (work(jobs[k]) for k in watch())
        return
    _work = work
    try:
        with multiprocessing.get_context("fork").Pool(min(cores, 16)) as pool:
            done = pool.imap(_done, jobs)
            yield from (next(done) for _ in watch())
    finally:
        _work = None


def _check_pictures(each: SampleSet, processor: object, images: int | None, watch: Watch, checked: CheckedSet) -> None:
    """Some samples that have pictures, decoded as training and tests decode them."""
    source, evaluation = each.source, each.evaluation
    asked = range(len(each)) if evaluation is None else [index for index, _ in each.questions]
    pictured = [number for number, index in enumerate(asked) if source.has_image(index)]
    chosen = pictured
    if images is not None and images < len(pictured):
        chosen = sorted(random.Random(0).sample(pictured, images))
    checked.pictured, checked.decoded, checked.broken = len(pictured), 0, 0
    known = {finding.where for finding in checked.findings if finding.where}
    for index in watch(f"{checked.stage} {each.title}: pictures", chosen):
        if each.where(index) in known:
            continue
        try:
            sample, drawn = each.sample(index)
        except ValueError:
            continue  # it is no sample, which was said
        checked.decoded += 1
        try:
            _decode(sample, processor, drawn)
        except ValueError as error:
            checked.broken += 1
            checked.findings.append(Finding(where=each.where(index), id=sample.id, rule=str(error)))


def _decode(sample: Sample, processor: object, drawn: torch.Generator | None) -> None:
    for ref in sample.images:
        if isinstance(processor, Processor):
            processor.image(decode_image(ref, processor.limits, processor.image.decode), drawn)
        else:
            decode_image(ref)


class _NoPixels(ImagePolicy):
    """Views of one black pixel each."""

    def __call__(self, image: Image.Image, random: torch.Generator | None = None) -> UInt8[Tensor, "V 3 1 1"]:
        return torch.zeros(self.views, 3, 1, 1, dtype=torch.uint8)


def without_pixels(processor: Processor) -> Processor:
    """The same processor, which gives each picture as many views as before, of a pixel each."""
    light = copy(processor)
    light.image = _NoPixels(size=1, fit="squash", decode="stored", views=processor.image.num_views)
    return light


def _finding(each: SampleSet, index: int, error: ValueError) -> Finding:
    found = re.match(r"sample ('(?:[^'\\]|\\.)*'|[^:]*): ", str(error))
    id = found[1].strip("'") if found else ""
    return Finding(where=each.where(index), id=id, rule=str(error)[found.end() if found else 0 :])


def located(sentence: str) -> Finding:
    """What a source says of a record that it left out: "FILE: record 12 (id 7): rule", "FILE:12: rule"."""
    found = re.match(r"(?P<where>.*?) \(\w+ (?P<id>.*?)\): (?P<rule>.*)", sentence, re.DOTALL) or re.match(
        r"(?P<where>.*?(?::\d+|: \w+ \S+|: \w+\[\d+\])): (?P<rule>.*)", sentence, re.DOTALL
    )
    if found is None:
        return Finding(where="", id="", rule=sentence)
    named = found.groupdict()
    return Finding(where=named["where"], id=named.get("id", ""), rule=named["rule"])

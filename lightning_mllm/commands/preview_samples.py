"""Some samples of each set of an experiment as the net gets them: what the page of `mllm preview` shows.

No net is built: the processor alone makes what training reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.preview_pictures import Picture, pictures
from lightning_mllm.commands.preview_tokens import Chip, Said, TokenText, chips, learned_chips, prompt_parts
from lightning_mllm.commands.prompt_parity import Prompts, prompts, template_of
from lightning_mllm.commands.stage_data import ComposedStage, SampleSet
from lightning_mllm.contracts import IGNORE, Encoded, Sample
from lightning_mllm.processing.processor import Processor

LOOKED = 20_000
"""Samples among which one with a picture, and one without, are looked for."""


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """One sample; where it cannot be encoded, `error` says why and nothing else is known."""

    id: str
    where: str
    error: str = ""
    task: str = ""
    template: str = ""
    pictures: Sequence[Picture] = ()
    row: Sequence[Chip] = ()
    targets: Sequence[Chip] = ()
    query: Sequence[Chip] = ()
    training: Sequence[Said] = ()
    generation: Sequence[Said] = ()
    verdict: str = "one"
    difference: str = ""
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


@dataclass(kw_only=True)
class ShownSet:
    """Some samples of a set."""

    title: str
    kind: str
    scored: bool
    size: int = 0
    samples: list[ShownSample] = field(default_factory=list)
    error: str = ""


@dataclass(kw_only=True)
class ShownStage:
    """The sets of a stage."""

    title: str
    name: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    sets: list[ShownSet] = field(default_factory=list)
    error: str = ""


def preview(
    stages: Sequence[ComposedStage], *, samples: int = 3, ids: Sequence[str] = ()
) -> tuple[list[ShownStage], list[str]]:
    """Some samples of every set of the stages, and the ids among `ids` that no set has.

    What a stage or a set lacks is told in its place; the others are shown.

    Args:
        samples: Of each set, a fixed random choice.
        ids: These in place of them.
    """
    shown, missing = [], set(ids)
    for stage in stages:
        found = ShownStage(title=stage.title, name=stage.name)
        shown.append(found)
        try:
            stage.with_processor()
            processor = _readable(stage.processor)
            found.facts = _stage_facts(stage)
        except ValueError as error:
            found.error = str(error)
            continue
        for each in stage.sets():
            one = _shown_set(each, processor, samples, ids)
            missing -= {sample.id for sample in one.samples}
            if one.samples or one.error or not ids:
                found.sets.append(one)
    return shown, sorted(missing)


def _readable(processor: Processor) -> Processor:
    """A processor whose tokens can be shown."""
    lacking = [name for name in ("tokenizer", "chat", "limits", "image") if not hasattr(processor, name)]
    if lacking:
        found = f"{type(processor).__name__} without {', '.join(lacking)}"
        raise ConfigError(f"model.processor: found {found}, expected lightning_mllm.processing.processor.Processor")
    return processor


def _stage_facts(stage: ComposedStage) -> list[tuple[str, str]]:
    module, processor = stage.module, stage.processor
    image = processor.image
    facts = [("net", type(module).__name__), ("chat template", str(processor.chat.name))]
    if image.size > 1:
        views = f", {image.num_views} views" if image.num_views > 1 else ""
        facts.append(("pictures", f"{image.size} x {image.size}, {image.fit}{views}"))
    facts.append(("longest row", f"{processor.max_length:,} tokens"))
    facts.append(("vocabulary", f"{len(processor.tokenizer):,} tokens"))
    return facts


def _shown_set(each: SampleSet, processor: Processor, samples: int, ids: Sequence[str]) -> ShownSet:
    kind = type(each.source).__name__
    shown = ShownSet(title=each.title, kind=f"{kind}, task {each.task}" if each.task else kind, scored=bool(each.task))
    try:
        each.load()
        shown.size = len(each)
        chosen = _with_ids(each, ids) if ids else _some(each, samples)
        shown.samples = [_shown(each, index, processor) for index in chosen]
    except ValueError as error:
        shown.error = str(error)
    return shown


def _some(each: SampleSet, samples: int) -> list[int]:
    """A fixed random choice; where there are samples with a picture and without, one of either kind at least."""
    order = torch.randperm(len(each), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = order[:samples]
    if each.evaluation is None and not each.rows and samples > 1:
        seen = [each.source.has_image(index) for index in chosen]
        for kind in (True, False):
            others = (index for index in order[:LOOKED] if each.source.has_image(index) is kind)
            if kind not in seen and (other := next(others, None)) is not None:
                chosen[-1] = other
    return sorted(chosen)


def _with_ids(each: SampleSet, ids: Sequence[str]) -> Iterator[int]:
    """The samples that are called so; the set is read until all are found."""
    wanted = set(ids)
    found = (index for index in range(len(each)) if each.sample(index)[0].id in wanted)
    return islice(found, len(wanted))


def _shown(each: SampleSet, index: int, processor: Processor) -> ShownSample:
    sample, random = each.sample(index)
    where = each.where(index)
    try:
        found = prompts(processor, sample, random)
        drawn = pictures(sample, found.training, processor, getattr(each.source, "frame", None))
    except ValueError as error:
        return ShownSample(id=sample.id, where=where, error=str(error))
    return replace(_described(sample, found, processor), where=where, pictures=drawn)


def _described(sample: Sample, found: Prompts, processor: Processor) -> ShownSample:
    words, row = TokenText(processor.tokenizer), found.training
    query = row.query_text
    reader = processor.query_text
    read = None if query is None or reader is None else TokenText(reader.tokenizer)
    return ShownSample(
        id=sample.id,
        where="",
        task=sample.task,
        template="" if sample.documents is not None else str(template_of(processor, sample).name),
        row=chips(row, words),
        targets=[] if row.targets is None else learned_chips(row.targets.tolist(), words, learned=True),
        query=[] if query is None or read is None else learned_chips(query.tolist(), read, learned=False),
        training=prompt_parts(row, words),
        generation=[] if found.generation is None else prompt_parts(found.generation, words, learns=False),
        verdict=found.verdict,
        difference=found.difference,
        facts=_facts(row, processor),
        notes=_notes(sample, row, processor),
    )


def _facts(row: Encoded, processor: Processor) -> list[tuple[str, str]]:
    learned = row.labels if row.targets is None else row.targets
    facts = [("tokens", f"{len(row.tokens):,}"), ("learned", f"{int((learned != IGNORE).sum()):,}")]
    if row.visual_counts:
        each = row.visual_counts[0]
        slots = f" x {each:,} slots" if each else ""
        facts.append(("pictures", f"{len(row.visual_counts)}{slots}"))
    if row.segments is not None:
        facts.append(("documents", f"{int(row.segments.max()):,}"))
    if row.targets is not None:
        facts.append(("targets", f"{len(row.targets):,}"))
    return facts


def _notes(sample: Sample, row: Encoded, processor: Processor) -> list[str]:
    """What was done to the sample, in words."""
    notes = [note for note in row.notes if note != "cut"]
    if "cut" in row.notes:
        try:
            processor.encode(sample, may_cut=False)
        except ValueError as error:
            notes.append(f"cut: {error}")
    return notes

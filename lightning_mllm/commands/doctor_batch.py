"""Real samples of each set on their way into a batch: masks, counts of slots, and the prompt in training and asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lightning_mllm.boxes import FRAMES
from lightning_mllm.commands.doctor_lines import Line, Subject, some
from lightning_mllm.commands.prompt_parity import Prompts, prompts
from lightning_mllm.commands.stage_data import SampleSet
from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Encoded, Sample, TokenKind
from lightning_mllm.processing.processor import Processor

SAMPLES = 8
"""Of each set."""
SHORT = 12
"""Characters up to which a question may stand in its answer by chance."""


@dataclass
class Taken:
    """Some samples of a set."""

    samples: list[Sample] = field(default_factory=list)
    rows: list[Prompts] = field(default_factory=list)
    error: str = ""


def batch(subject: Subject) -> Iterator[Line]:
    """Some samples of each set are encoded and become a batch."""
    processor = subject.processor
    if processor is None:
        remedy = "put the tokenizer on this machine (see weights and tokenizers), then ask again"
        yield Line(check="batch", level="yellow", found="not tried: the net's tokenizer is not here", remedy=remedy)
        return
    for each in _readable(subject):
        taken = _taken(each, subject, processor)
        if taken.error:
            skips = getattr(each.source, "bad_records", "refuse") == "skip"
            remedy = "correct the record, or leave such out (bad_records: skip); mllm preview shows samples"
            yield Line(check="batch", level="yellow" if skips else "red", found=taken.error, remedy=remedy)
            continue
        if (wrong := _frames(each, processor)) is not None:
            yield wrong
            continue
        encoded = [row.training for row in taken.rows]
        if any(_slot_fault(row, processor.image.num_views) for row in encoded):
            continue  # told by the check of slots
        found = processor.collate(encoded)
        padding = 1 - sum(len(row.tokens) for row in encoded) / math.prod(found.tokens.shape)
        longest = found.tokens.shape[1]
        told = f"{each.title}: {len(encoded)} samples, the longest of {longest} tokens, {padding:.0%} padding"
        cut = sum(any(note.split(":")[0] in ("cut", "overlong") for note in row.notes) for row in encoded)
        if cut:
            remedy = "raise model.max_length or the text limits, if the machine holds longer rows"
            yield Line(check="batch", level="yellow", found=f"{told}, {cut} cut", remedy=remedy)
        else:
            yield Line(check="batch", level="green", found=told)


def masks(subject: Subject) -> Iterator[Line]:
    """In every sample something is learned, slots of pictures never are, and what is asked is not."""
    remedy = "choose the chat template that the data is written for (model.chat); mllm preview colours what is learned"
    for each, taken, processor in _tried(subject):
        if each.generates:
            continue
        learned = [_learned(row.training) for row in taken.rows]
        wrong = next(filter(None, map(_mask_fault, taken.samples, taken.rows, [processor] * len(learned))), "")
        if wrong:
            yield Line(check="masks", level="red", found=f"{each.title}: {wrong}", remedy=remedy)
            continue
        empty = sum(count == 0 for count in learned)
        share = sum(learned) / max(1, sum(len(row.training.tokens) for row in taken.rows))
        told = f"{each.title}: {min(learned)} to {max(learned)} tokens learned, {share:.0%} of what is read"
        if empty == len(learned):
            yield Line(check="masks", level="red", found=f"{each.title}: nothing is learned of any", remedy=remedy)
        elif empty:
            found = f"{told}; nothing is learned of {empty} of {len(learned)}"
            yield Line(check="masks", level="yellow", found=found, remedy=remedy)
        else:
            yield Line(check="masks", level="green", found=told)


def _learned(row: Encoded) -> int:
    labels = row.labels[1:] if row.targets is None else row.targets
    return int((labels != IGNORE).sum())


def _mask_fault(sample: Sample, row: Prompts, processor: Processor) -> str:
    """What is learned that must not be, in words; empty where nothing is."""
    found = row.training
    slots = int(((found.kinds != TokenKind.TEXT) & (found.labels != IGNORE)).sum())
    if slots:
        return f"sample {sample.id}: {slots} slots of pictures are learned, expected none"
    learned = " ".join(processor.decode(run) for run in _runs(found))
    answers = " ".join(turn.text for turn in sample.turns if turn.role == "assistant")
    for turn in sample.turns:
        asked = turn.text.replace(IMAGE_MARK, "").strip()
        if turn.role == "user" and len(asked) > SHORT and asked in learned and asked not in answers:
            return f"sample {sample.id}: the question {asked[:40]!r} is learned, expected answers alone"
    return ""


def _runs(row: Encoded) -> list[list[int]]:
    """The learned tokens, those that stand together in one list."""
    runs, before = list[list[int]](), False
    for label in row.labels.tolist():
        if label != IGNORE:
            runs = runs if before else [*runs, []]
            runs[-1].append(label)
        before = label != IGNORE
    return runs


def slots(subject: Subject) -> Iterator[Line]:
    """As many slots as the pictures have vectors, and as many squares as their views."""
    remedy = "the net's vectors per view and the processor's slots must agree: model.vision, model.connector"
    for each, taken, processor in _tried(subject):
        views = processor.image.num_views
        wrong = next(filter(None, (_slot_fault(row.training, views) for row in taken.rows)), "")
        if wrong:
            yield Line(check="slots", level="red", found=f"{each.title}: {wrong}", remedy=remedy)
            continue
        counts = [count for row in taken.rows for count in row.training.visual_counts]
        if counts and max(counts):
            told = f"{each.title}: {len(counts)} pictures x {max(counts)} slots in {views} view{'s' * (views > 1)}"
            yield Line(check="slots", level="green", found=told)


def _slot_fault(row: Encoded, views: int) -> str:
    found, expected = int((row.kinds == TokenKind.IMAGE).sum()), sum(row.visual_counts)
    if found != expected:
        return f"sample {row.id}: {found} slots for {expected} vectors, expected as many"
    if len(row.images) != views * len(row.visual_counts):
        pictures = f"{len(row.visual_counts)} pictures of {views} views"
        return f"sample {row.id}: {len(row.images)} squares for {pictures}, expected {views * len(row.visual_counts)}"
    return ""


def parity(subject: Subject) -> Iterator[Line]:
    """What the net is trained to answer is, token by token, what it is asked."""
    for each, taken, _ in _tried(subject):
        differ = [row for row in taken.rows if row.verdict == "differ"]
        compared = sum(row.verdict == "agree" for row in taken.rows)
        if differ:
            first = differ[0]
            told = f"{each.title}: {len(differ)} of {len(taken.rows)} differ; sample {first.training.id}: "
            remedy = "mllm preview shows both prompts; the chat template must end where an answer begins"
            yield Line(check="prompts", level="red", found=told + first.difference, remedy=remedy)
        elif compared:
            told = f"{each.title}: {compared} prompts are the same in training and where asked"
            yield Line(check="prompts", level="green", found=told)


def _frames(each: SampleSet, processor: Processor) -> Line | None:
    """Boxes that are told of another frame than the net is shown."""
    frame = getattr(each.source, "frame", None)
    if frame not in FRAMES or processor.image.frame == frame:
        return None
    fit = {"image": "squash", "square": "pad"}[frame]
    return Line(
        check="batch",
        level="red",
        found=f"{each.title}: boxes are shares of the {frame}, and image.fit: {processor.image.fit} shows another",
        remedy=f"model.image.fit: {fit}, or frame: {processor.image.frame or 'image'} where the boxes are so",
    )


def _tried(subject: Subject) -> Iterator[tuple[SampleSet, Taken, Processor]]:
    """The sets whose samples could be encoded; the others are told by `batch`."""
    processor = subject.processor
    if processor is not None:
        for each in _readable(subject):
            taken = _taken(each, subject, processor)
            if not taken.error:
                yield each, taken, processor


def _readable(subject: Subject) -> list[SampleSet]:
    """The sets that the check of data has found nothing wrong with."""
    return [each for each in subject.loaded if each.title not in subject.faulty]


def _taken(each: SampleSet, subject: Subject, processor: Processor) -> Taken:
    """Encoded once, for all checks."""
    if each.title not in subject.taken:
        subject.taken[each.title] = _encode(each, processor, some(len(each), SAMPLES))
    return subject.taken[each.title]


def _encode(each: SampleSet, processor: Processor, indices: Iterable[int]) -> Taken:
    taken = Taken()
    for index in indices:
        try:
            sample, random = each.sample(index)
            taken.rows.append(prompts(processor, sample, random))
            taken.samples.append(sample)
        except ValueError as error:
            where = each.where(index)
            taken.error = f"{each.title}: {where + ': ' if where else ''}{error}"
            break
    return taken

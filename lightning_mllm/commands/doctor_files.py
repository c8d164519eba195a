"""Files that a stage reads, and room for those that it writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import try_to_load_from_cache
from open_clip.pretrained import download_pretrained, get_pretrained_cfg

from lightning_mllm.commands.doctor_lines import Level, Line, Subject, some
from lightning_mllm.commands.stage_data import SampleSet
from lightning_mllm.processing.images import decode_image
from lightning_mllm.processing.processor import Processor
from lightning_mllm.weights.files import PACKAGE, resource
from lightning_mllm.weights.hub import NAME

PICTURES = 16
"""Of each set, that are opened."""
GB = 10**9
SCALARS = 3
"""Float32 numbers that a checkpoint keeps of a trained parameter: its value and both moments of AdamW."""
WRITTEN_AT_ONCE = 3
"""Checkpoints on the disk while one is written: it and the two that are kept (`checkpoint_keep`)."""
FILES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".model")
"""How files of weights and words end."""
NAMED = ("model", "weights", "reader", "tokenizer")
"""Settings that name files of weights and words."""


def data(subject: Subject) -> Iterator[Line]:
    """The annotations of each set are read whole, and some of its pictures opened."""
    for each in subject.sets:
        yield _set(each, subject)


def _set(each: SampleSet, subject: Subject) -> Line:
    try:
        each.load()
        if each.rows:
            return Line(check="data", level="green", found=f"{each.title}: {len(each.source):,} documents")
    except ValueError as error:
        return _faulty(each, subject, error, "red")
    try:
        opened = _opened(each, subject.processor)
    except ValueError as error:  # which a run meets while it reads, and where it is told so, goes on from
        return _faulty(each, subject, error, "red" if each.source.bad_records == "refuse" else "yellow")
    left = len(getattr(each.source, "skipped", ()))
    told = f"{each.title}: {len(each):,} samples, {opened} pictures opened"
    if left:
        first = each.source.skipped[0]
        remedy = "correct the records, or go on without them; mllm data check lists them all"
        return Line(check="data", level="yellow", found=f"{told}, {left:,} left out: {first}", remedy=remedy)
    return Line(check="data", level="green", found=told)


def _faulty(each: SampleSet, subject: Subject, error: ValueError, level: Level) -> Line:
    subject.faulty.add(each.title)
    told, _, made = str(error).partition("; make it with: ")
    remedy = "correct what is named, or leave such out (bad_records: skip); mllm data check lists them all"
    if told.endswith("not found"):
        remedy = "put the file where it is named, or name another place in the stage's data"
    elif level == "yellow":
        remedy = "correct what is named, or go on without such (data.bad_limits); mllm data check lists them all"
    return Line(check="data", level=level, found=told, remedy=made or remedy)


def _opened(each: SampleSet, processor: Processor | None) -> int:
    """How many pictures were opened; ValueError for one that cannot be, with the record that names it."""
    opens = decode_image
    if processor is not None:
        opens = partial(decode_image, limits=processor.limits, decode=processor.image.decode)
    count = 0
    for index in some(len(each), PICTURES):
        try:
            for ref in each.sample(index)[0].images:
                opens(ref)
                count += 1
        except ValueError as error:
            raise ValueError(f"{each.title}: {each.where(index)}: {error}") from error
    return count


def parts(subject: Subject) -> Iterator[Line]:
    """Weights and tokenizers that the net names: in the package, on this machine, or to be downloaded."""
    found = named(subject)
    absent = [name for name in found if not is_here(name)]
    here = [name for name in found if name not in absent]
    if here or not found:
        told = ", ".join(here) or "no file is named"
        yield Line(check="weights and tokenizers", level="green", found=told)
    for name in absent:
        if on_the_hub(name):
            remedy = f"hf download {name} (mllm run does it, too)"
            yield Line(
                check="weights and tokenizers", level="yellow", found=f"{name} is not on this machine", remedy=remedy
            )
        else:
            yield Line(
                check="weights and tokenizers",
                level="red",
                found=f"{name}: found no such file",
                remedy="put it there, or name another one in net.yaml",
            )
    yield from _towers(subject)


def _names(settings: object) -> Iterator[str]:
    """Every file or name on the Hub that settings hold."""
    if not isinstance(settings, Mapping):
        for each in settings if isinstance(settings, list) else ():
            yield from _names(each)
        return
    for key, value in settings.items():
        is_name = isinstance(value, str) and (value.startswith(PACKAGE) or "/" in value)
        if key in NAMED and is_name:
            yield value
        elif key not in ("stage", "decoding"):
            yield from _names(value)


def named(subject: Subject) -> list[str]:
    """Files and names on the Hub that the net's settings hold."""
    return list(dict.fromkeys(_names(subject.stage.resolved["model"]["init_args"])))


def on_the_hub(name: str) -> bool:
    """Whether it may be a name on the Hub: OWNER/NAME, and not that of a file."""
    return NAME.fullmatch(name) is not None and Path(name).suffix not in FILES and not Path(name).parent.is_dir()


def is_here(name: str) -> bool:
    """Whether a file, a folder, or a model of the Hub, is on this machine."""
    if resource(name).exists():
        return True
    files = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    return bool(NAME.fullmatch(name)) and any(isinstance(try_to_load_from_cache(name, each), str) for each in files)


def _towers(subject: Subject) -> Iterator[Line]:
    """Of open_clip's weights by tag: whether they have been downloaded."""
    for part, spec in _open_clip(subject.stage.resolved["model"]["init_args"]):
        told = f"{part}: {spec['model']} with weights {spec['weights']}"
        try:
            download_pretrained(get_pretrained_cfg(spec["model"], spec["weights"]))
        except (OSError, RuntimeError, ValueError):
            remedy = "mllm run downloads them; for a machine without a network name a file in weights"
            found = f"{told}: not on this machine"
            yield Line(check="weights and tokenizers", level="yellow", found=found, remedy=remedy)
        else:
            yield Line(check="weights and tokenizers", level="green", found=told)


def _open_clip(settings: object, part: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts that name an architecture of open_clip and a tag of its weights."""
    if isinstance(settings, Mapping):
        model, weights = settings.get("model"), settings.get("weights")
        tagged = isinstance(weights, str) and weights != "" and "/" not in weights and not Path(weights).exists()
        if tagged and model in open_clip.list_models():
            yield part, settings
            return
        for key, value in settings.items():
            if key not in ("stage", "decoding"):
                yield from _open_clip(value, part or key)
    elif isinstance(settings, list):
        for each in settings:
            yield from _open_clip(each, part)


def disk(subject: Subject) -> Iterator[Line]:
    """Room for the checkpoints and the weights of the stage in the folder of runs."""
    if not subject.builds:
        return
    trained = sum(each.numel() for each in subject.net.parameters() if each.requires_grad)
    callbacks = subject.stage.resolved["trainer"]["callbacks"] or []
    averages = sum(".averaging." in str(each.get("class_path")) for each in callbacks)
    need = 4 * trained * ((SCALARS + averages) * WRITTEN_AT_ONCE + 1 + averages)
    folder = next(each for each in (subject.runs.resolve(), *subject.runs.resolve().parents) if each.is_dir())
    free = shutil.disk_usage(folder).free
    told = f"{_size(need)} for checkpoints and weights, {_size(free)} free in {subject.runs}"
    remedy = "free some of the disk, or name another folder with --runs"
    if need > free:
        yield Line(check="disk", level="red", found=told, remedy=remedy)
    elif need > free / 2:
        yield Line(check="disk", level="yellow", found=told, remedy=remedy)
    else:
        yield Line(check="disk", level="green", found=told)


def _size(count: int) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB / 10 else f"{count / 10**6:,.1f} MB"

"""`mllm cache EXPERIMENT`: what the frozen tower of each stage makes of its images, written once, for training to read.

    stage --sources--> images in files, shards, tables --bytes--> known? --decode, tower--> a row of the store

Killed, it goes on where it was: rows are made to last every few seconds, before what names them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import seed_everything
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.cached_pictures import Picture, Pictures, distinct
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.model import device_called
from lightning_mllm.commands.stage_data import ComposedStage, composed_stages
from lightning_mllm.contracts import ImageFile, ImageRef
from lightning_mllm.training.cached_features import (
    VISION,
    Facts,
    Seen,
    built_tower,
    check_frozen,
    check_still,
    earlier_vision,
    facts_of,
    flat,
    groups_of,
    key_of,
    seen,
)
from lightning_mllm.training.callbacks.feature_check import shown_images
from lightning_mllm.training.initialise import Provenance, build_empty
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.feature_store import DTYPES, FACTS, FORMAT, FeatureStore
from lightning_mllm.weights.feature_writer import FeatureWriter, writing
from lightning_mllm.weights.lineage import InitSource
from lightning_mllm.weights.stage_weights import InitialTensors

EVERY = 10.0
"""Seconds between two moments at which what is written is made to last."""
LIBRARIES = ("torch", "open_clip_torch", "timm", "pillow")
Dtype = Literal["float32", "bfloat16", "float16"]


def main(arguments: Sequence[str]) -> None:
    """`mllm cache EXPERIMENT_OR_CONFIG [--to FOLDER] [--only STAGE] [--dtype D] [--device D] [settings]`."""
    parser = Arguments(
        "cache",
        description="Write what the frozen vision tower makes of the images that each stage trains on, and is validated"
        " on, to read it in training in place of the tower. A killed one goes on.",
        epilog="mllm run EXPERIMENT --hardware.feature_cache=FOLDER trains from it. Further options are settings.",
    )
    parser.add_argument("experiment", type=Path, help="as of mllm run, or the YAML of one stage")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where to (hardware.feature_cache)")
    parser.add_argument("--only", metavar="STAGE", help="this stage alone")
    parser.add_argument("--hardware", default="cpu", metavar="NAME", help="a file of _hardware (cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="of what is written (that of hardware.precision)")
    parser.add_argument("--device", default="cpu", help="where the tower computes (cpu)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images that the tower sees at once (32)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (runs)")
    given, overrides = parser.with_settings(arguments)
    if given.batch < 1:
        raise ConfigError(f"--batch: found {given.batch}, expected at least 1")
    how = Writing(device=device_called(given.device), dtype=given.dtype, batch=given.batch)
    settings = [*overrides, f"--runs={given.runs}"]
    stages = composed_stages(given.experiment, hardware=given.hardware, only=given.only, overrides=settings)
    refused = {stage.name: reason for stage in stages if (reason := refusal(stage)) is not None}
    if len(refused) == len(stages):
        raise ConfigError(next(iter(refused.values())))
    done: Towers = {}
    for stage in stages:
        if stage.name in refused:
            print(f"{stage.title}: nothing to write, it trains from pixels ({refused[stage.name]})")
        else:
            write_stage(stage, {each.name: each for each in stages}, given.to, how, done)


def refusal(stage: ComposedStage) -> str | None:
    """Why the features of the stage's images do not stay as they are; None where they do."""
    try:
        check_still(stage.module)
        check_frozen(stage.module, [n for n, _ in build_empty(stage.module.components[VISION]).named_parameters()])
    except ValueError as error:
        return str(error)
    return None


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A tower with its weights, and what is known of it."""

    module: nn.Module
    provenance: Provenance
    parameters: dict[str, int]
    """How many, by dtype."""
    blank: Seen
    """What it makes of the blank image."""
    bf16: bool
    """Whether its matrix products are in bfloat16."""


Towers = dict[str, Tower]
"""By key: stages share one."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How features are written."""

    device: torch.device = torch.device("cpu")
    """Where the tower computes."""
    dtype: Dtype | None = None
    """Of what is written; None for that of `hardware.precision`."""
    batch: int = 32
    """Images that the tower sees at once."""
    workers: int = 0
    """Processes that read and decode them."""


def write_stage(
    stage: ComposedStage, stages: dict[str, ComposedStage], to: Path | None, how: Writing, towers: Towers
) -> None:
    """The features of the images of one stage.

    Raises:
        ValueError: As `write`; or a source cannot be read.
    """
    settings = stage.resolved
    folder = to or (Path(found) if (found := settings["hardware"]["feature_cache"]) else None)
    if folder is None:
        raise ConfigError("--to: found no folder, expected one, or hardware.feature_cache")
    if settings["seed_everything"] is not False:
        seed_everything(settings["seed_everything"], verbose=False)
    how = replace(how, workers=settings["hardware"]["workers"])
    write(stage.module, vision_weights(stage, stages), distinct(_images(stage)), folder, how, towers, stage.title)


def write(
    module: MultimodalModule,
    earlier: InitialTensors,
    refs: Sequence[ImageRef],
    cache: Path,
    how: Writing,
    towers: Towers,
    title: str,
) -> FeatureStore:
    """What a net's tower makes of images.

    Args:
        module: Not built.
        earlier: What its tower takes from earlier stages (`vision_weights`).
        refs: The images, each once.
        cache: The folder of stores.
        how: Device, dtype and sizes.
        towers: Those that are built already.
        title: Of what is written, for what is printed.

    Raises:
        ValueError: The disk is too small, another process writes there, or what is there is of another dtype.
    """
    of = facts_of(module, earlier)
    if (key := key_of(of)) not in towers:
        towers[key] = _tower(module, earlier, how.device)
    tower, folder = towers[key], cache / key
    dtype: Dtype = how.dtype or ("bfloat16" if module.parallel.precision == "bf16" else "float32")
    facts = _facts(module, of, tower, dtype)
    blank = flat(tower.blank, getattr(torch, dtype)).expand(facts["views"], -1)
    left = refs
    if (folder / FACTS).is_file():
        known = FeatureStore(folder)
        left = [ref for ref in refs if not (isinstance(ref, ImageFile) and known.row_of_file(ref) is not None)]
    _announce(title, cache, facts, len(refs), len(left), blank.numel() * blank.itemsize)
    bad: list[str] = []
    with writing(folder, facts, blank) as writer:
        started, rows, last = time.process_time(), writer.rows, time.monotonic()
        for some in _watched(Pictures(left, module.processor, writer.store), how, title):
            bad += [picture.error for picture in some if picture.error]
            add(writer, some, tower, how.device)
            if time.monotonic() - last > EVERY:
                writer.flush()
                last = time.monotonic()
        rows = writer.rows - rows
    print(f"{title}: {rows:,} new rows in {folder} ({time.process_time() - started:.1f} CPU-seconds)")
    if bad:
        print(f"{title}: {len(bad):,} pictures cannot be used, which training will say or replace: {bad[0]}")
    return FeatureStore(folder)


def add(writer: FeatureWriter, some: Sequence[Picture], tower: Tower, device: torch.device) -> None:
    """Rows of the pictures that have none, and the files that show them."""
    new = {each.digest: each for each in some if each.pixels is not None and writer.row_of(each.digest) is None}
    if new:
        pixels = torch.cat([each.pixels for each in new.values() if each.pixels is not None])
        features = flat(seen(tower.module, pixels.to(device), tower.bf16), writer.store.dtype).unflatten(
            0, (len(new), -1)
        )
        writer.append(list(new), [each.size for each in new.values()], features)
    for each in some:
        row = writer.row_of(each.digest)
        if row is not None and each.ref is not None and each.times is not None:
            writer.note(each.ref, each.times, row)


def vision_weights(stage: ComposedStage, stages: dict[str, ComposedStage]) -> InitialTensors:
    """`earlier_vision`, also where a stage that it starts from is not trained yet and does not train the tower.

    Raises:
        ValueError: A source is missing.
    """
    module, runs = stage.module, Path(stage.resolved["runs"])
    module.runs = str(runs)
    sources = stage.resolved["stage"]["init_from"]
    paths = {name: stage.cli._sibling(name) for name in sources}
    waiting = [stages[name] for name, path in paths.items() if name in stages and not _is_there(path, runs)]
    if not waiting:
        return earlier_vision(module, {paths[name]: weight for name, weight in sources.items()})
    for each in waiting:
        if (reason := refusal(each)) is not None and "trains" in reason:
            raise ConfigError(f"{stage.title}: starts from {each.title}, expected it to be trained first ({reason})")
    found = [vision_weights(each, stages) for each in waiting]
    if len(waiting) == len(sources) and not any(found):
        return found[0]
    if len(sources) == 1:
        return found[0]
    raise ConfigError(f"{stage.title}: starts from several stages, expected them to be trained first")


def _is_there(source: str, runs: Path) -> bool:
    try:
        InitSource.find(source, runs)
    except ValueError:
        return False
    return True


def _tower(module: MultimodalModule, earlier: InitialTensors, device: torch.device) -> Tower:
    counts: dict[str, int] = {}
    for parameter in build_empty(module.components[VISION]).parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + parameter.numel()
    tower, provenance = built_tower(module, earlier, device)
    size = module.processor.image.size
    bf16 = module.parallel.precision == "bf16"
    blank = seen(tower, torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device), bf16)
    return Tower(module=tower, provenance=provenance, parameters=counts, blank=blank, bf16=bf16)


def _facts(module: MultimodalModule, of: Facts, tower: Tower, dtype: Dtype) -> Facts:
    return {
        "format": FORMAT,
        "of": of,
        "dtype": dtype,
        "views": module.processor.image.num_views,
        "groups": [list(group.shape[1:]) for group in groups_of(tower.blank)],
        "mixed": isinstance(tower.blank, tuple),
        "provenance": tower.provenance,
        "parameters": tower.parameters,
        "computed_in": module.parallel.precision,
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _images(stage: ComposedStage) -> Iterator[ImageRef]:
    """Of all that the stage trains on and is validated on; reads the annotations."""
    data: Any = stage.data
    if not hasattr(data, "load_training") or not hasattr(data, "train"):
        raise ConfigError(f"data: found {type(data).__name__}, expected one of sources, whose images are known")
    data.load_training()
    for _, refs in shown_images(data, most=None):
        yield from refs


def _announce(title: str, folder: Path, facts: Facts, count: int, left: int, row: int) -> None:
    """Says what is needed and what is free.

    Raises:
        ValueError: It is not enough.
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    needed, free = left * row, shutil.disk_usage(place).free
    shape = " + ".join(f"{vectors} x {width}" for vectors, width in facts["groups"])
    views = f"{facts['views']} views of " if facts["views"] > 1 else ""
    print(
        f"{title}: {count:,} pictures, {left:,} of them new, each {views}{shape} in {facts['dtype']} ({row:,} bytes):"
        f" at most {needed:,} bytes needed in {folder}, {free:,} free",
        flush=True,
    )
    if needed > free:
        half = "; --dtype bfloat16 halves it" if facts["dtype"] == "float32" else ""
        raise ValueError(f"{folder}: found {free:,} bytes free, expected {needed:,} for {left:,} pictures{half}")


def _watched(pictures: Pictures, how: Writing, title: str) -> Iterator[list[Picture]]:
    """Them in batches, read ahead, with what is done shown."""
    context = "fork" if how.workers else None
    loader = DataLoader(pictures, how.batch, num_workers=how.workers, collate_fn=list, multiprocessing_context=context)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=len(pictures))
        for some in loader:
            yield some
            progress.advance(task, len(some))

"""The architecture of a stage at a size of a few thousand parameters: it trains by the stage's table, and is exported.

The twin is the architecture's own `tiny()`, with the stage's connector. Patterns that name what a small net has not,
such as the 30th block, are left out, and told.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from PIL import Image

from lightning_mllm.commands.doctor_lines import Line, Subject
from lightning_mllm.contracts import IMAGE_MARK, Batch, ParamGroup, Sample, Turn
from lightning_mllm.export.export import hf_folder
from lightning_mllm.export.importing import import_folder
from lightning_mllm.export.own_layout import TOKENIZERS
from lightning_mllm.interop.format import folder_format
from lightning_mllm.processing.image_in_memory import ImageInMemory
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.freezing import GradientCheck
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings

STEPS = 3
"""Adapters take two: the first of their two matrices has a gradient once the second has moved."""
LR = 1e-2
CLOSE = 1e-4
"""Of logits: float32, in another order of additions."""
SAID = (("red", "What colour is it?", "It is red."), ("blue", "And this one here?", "That one is blue."))


def gradients(subject: Subject) -> Iterator[Line]:
    """Each trained parameter of the twin gets a finite gradient that is not zero, and no frozen one does."""
    if not subject.builds:
        return  # told by the check of the freezing table
    try:
        twin, left_out = _trained_twin(subject)
        if twin is None:
            remedy = "give the class a tiny() of random values, as lightning_mllm/architectures/llava.py has"
            yield Line(check="gradients", level="yellow", found="not tried: the net has no small twin", remedy=remedy)
            return
        trained, total = _train(twin)
    except ValueError as error:
        remedy = "name in stage.train what the loss reaches, or exclude what it does not"
        yield Line(check="gradients", level="red", found=str(error), remedy=remedy)
        return
    told = f"{trained} of {total} tensors of the tiny twin learn, the others have no gradient"
    if left_out:
        told += f" (not tried on it: {', '.join(left_out)})"
    yield Line(check="gradients", level="green", found=told)


def _settings(subject: Subject) -> dict[str, Any]:
    """What the twin takes of the stage: its connector, and whether the Q-Former reads."""
    kind, given = type(subject.net), subject.stage.resolved["model"]["init_args"]
    settings: dict[str, Any] = {name: "" for name in TOKENIZERS if given.get(name) is not None}
    hint = inspect.signature(kind.__init__, eval_str=True).parameters.get("connector")
    if hint is not None and given.get("connector") is not None:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--connector", type=hint.annotation)
        settings["connector"] = parser.instantiate(parser.parse_object({"connector": given["connector"]}))["connector"]
    return settings


def _trained_twin(subject: Subject) -> tuple[MultimodalModule | None, list[str]]:
    """The twin in the stage, built, and the patterns that it has no parameters for."""
    kind: Any = type(subject.net)
    if not hasattr(kind, "tiny"):
        return None, []
    settings, lora, stage = _settings(subject), subject.net.lora, subject.net.stage
    assert stage is not None
    whole = StageSettings(name=stage.name, train={}, lora=lora)
    bare = kind.tiny(stage=whole, **settings)
    bare.build(None)
    names = [name for name, _ in bare.net.named_parameters()]
    table = {pattern: _fitting(how, pattern, names) for pattern, how in subject.net.table.items()}
    known = {pattern: how for pattern, how in table.items() if how is not None}
    left_out = [pattern for pattern, how in table.items() if how is None]
    if not known:
        return None, left_out
    twin = kind.tiny(stage=replace(whole, train=known), **settings)
    twin.configure_model()
    return twin, left_out


def _fitting(how: ParamGroup, pattern: str, names: list[str]) -> ParamGroup | None:
    """What of a pattern the twin has; None for nothing."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    exclude = tuple(each for each in how.exclude if any(fnmatchcase(name, each) for name in found))
    left = [name for name in found if not any(fnmatchcase(name, each) for each in exclude)]
    return replace(how, exclude=exclude) if left else None


def _train(twin: MultimodalModule) -> tuple[int, int]:
    """Some steps on drawn samples; ValueError, naming tensors, for a gradient that is not as the table says."""
    torch.manual_seed(0)
    check = GradientCheck(twin.net, twin.net.unused_parameters())
    optimizer = torch.optim.AdamW([each for each in twin.parameters() if each.requires_grad], lr=LR)
    batch = samples(twin.processor)
    for _ in range(STEPS):
        optimizer.zero_grad()
        twin(batch).loss.backward()
        check.look(saw_image=batch.num_images > 0, moves=True)
        optimizer.step()
        if check.done:
            break
    return len(check.trained), len(check.trained) + len(check.frozen)


def samples(processor: Processor) -> Batch:
    """Two drawn pictures with what is said of them, in the way that a processor writes."""
    rows = []
    for colour, question, answer in SAID:
        sees = processor.image.size > 1
        mark = f"{IMAGE_MARK}\n" if sees else ""
        captions = getattr(processor.chat, "images", "") == "only"
        asked = Turn(role="user", text=IMAGE_MARK if captions else mark + question)
        turns = (asked, Turn(role="assistant", text=answer)) if sees or not captions else (asked,)
        pictures = (ImageInMemory(Image.new("RGB", (20, 16), colour)),) if sees else ()
        rows.append(processor.encode(Sample(id=colour, turns=turns, images=pictures)))
    return processor.collate(rows)


def round_trip(subject: Subject) -> Iterator[Line]:
    """The twin as a folder of transformers, read back: its logits are the same."""
    if not subject.builds:
        return
    kind: Any = type(subject.net)
    form = folder_format(kind, subject.net.processor)
    if form is None or form.write is None or not hasattr(kind, "tiny"):
        remedy = "mllm export writes our own layout, which load and mllm ask read"
        told = f"no class of transformers holds a {kind.__name__}"
        yield Line(check="export", level="yellow", found=told, remedy=remedy)
        return
    twin: MultimodalModule = kind.tiny(**_settings(subject))
    twin.configure_model()
    try:
        folder = hf_folder(twin.eval())
    except ValueError as error:
        remedy = "mllm export checks the trained net itself"
        yield Line(check="export", level="yellow", found=f"not tried: the tiny twin: {error}", remedy=remedy)
        return
    with tempfile.TemporaryDirectory() as place:
        folder.write(Path(place))
        other = import_folder(Path(place))
        other.configure_model()
        apart = _apart(twin, other.eval())
    if apart > CLOSE:
        remedy = "the key table of the format and the net disagree: lightning_mllm/interop"
        told = f"read back, the logits of the tiny twin differ by {apart:.1e}, expected at most {CLOSE:.0e}"
        yield Line(check="export", level="red", found=told, remedy=remedy)
    else:
        told = f"{form.hf_class}: written, read back, logits of the tiny twin within {apart:.1e}"
        yield Line(check="export", level="green", found=told)


@torch.no_grad()
def _apart(one: MultimodalModule, other: MultimodalModule) -> float:
    """The largest difference of what two nets make of the same samples: their losses, row by row."""
    batch = samples(one.processor)
    if hasattr(one.net, "logits") and batch.targets is None:
        found: list[torch.Tensor] = [each.net.logits(batch) for each in (one, other)]  # pyright: ignore
    else:
        found = [torch.stack([term.losses for term in each(batch).terms.values()]) for each in (one, other)]
    return float((found[0] - found[1]).abs().max())

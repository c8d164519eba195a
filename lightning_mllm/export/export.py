"""`mllm export RUN --to DIR`: a trained run as a folder that others load, given out only if it answers as the run does.

module --layout.write--> files in a folder beside DIR --> a fresh process loads them as anybody would, and compares
                                                          tokens, pixels, logits and greedy answers with ours
all equal: renamed to DIR                                 any difference: removed, and an error that names it

The layout is that of transformers where a class of it holds the net, else our own (export/own_layout.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lightning_mllm.export.adapter import AdapterFolder
from lightning_mllm.export.card import write_card
from lightning_mllm.export.card_facts import CardFacts
from lightning_mllm.export.case import Layout, exact_logits, fitted, write_case
from lightning_mllm.export.case import drawing as drawing
from lightning_mllm.export.case import question as question
from lightning_mllm.export.importing import ImportedPart
from lightning_mllm.export.own_layout import OwnFolder
from lightning_mllm.export.record import Origin, write_record
from lightning_mllm.inference import load, load_apart
from lightning_mllm.inference.device_map import cast_parameters
from lightning_mllm.interop.format import HfFolder, TrainedNet, folder_format, folder_formats
from lightning_mllm.language.lora import fold_lora
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.folder_beside import folder_beside

MINUTES = 60
"""A 13B model is read from disk and run in float32 on the CPU."""

AnyFolder = HfFolder | OwnFolder | AdapterFolder


def export_run(
    run: Path, to: Path, *, dtype: torch.dtype | None = None, adapter_only: bool = False, name: str = ""
) -> Path:
    """Writes a run, or one stage of a run, as a folder that transformers, peft or `load` reads, with a model card.

    Warns where the folder is in our own layout, and of what its users must do themselves.

    Args:
        run: A run, a stage or a folder that `load` reads.
        to: Where to write; empty or absent.
        dtype: Of every weight; None leaves each as the run has it.
        adapter_only: Whether the adapters that the last stage trained are written for peft, without what they adapt.
        name: What the card calls the folder: its name on the Hub; "" is that of `to`.

    Raises:
        ValueError: `to` is not empty, the run has no adapters or they cannot be written alone, or the folder does not
            answer as our net does; then nothing is left behind.
        OSError: The disk is full or the folder cannot be written.
    """
    refuse_full(to)
    return export_module(load_apart(run), to, dtype=dtype, adapter_only=adapter_only, origin=Origin.of(run), name=name)


def export_module(
    module: MultimodalModule,
    to: Path,
    *,
    dtype: torch.dtype | None = None,
    adapter_only: bool = False,
    origin: Origin | None = None,
    name: str = "",
) -> Path:
    """As `export_run`, for a built net, which is left in float32, its adapters folded into what they adapt.

    Args:
        origin: The run that it is of: with it a card and a record are written, and pictures of its test compared.
        name: As in `export_run`.
    """
    refuse_full(to)
    layout: AnyFolder = layout_of(module, origin, adapters=not adapter_only)
    asked = fitted(module, [] if origin is None else origin.examples, whole=isinstance(layout, OwnFolder))
    with folder_beside(to) as beside:
        folder, case = Path(beside, to.name), Path(beside, "case")
        if adapter_only:
            trained = module.trained if origin is None else origin.record.get("names", ())
            layout = AdapterFolder.of(module, layout, Path(beside, "base"), trained)
            exact = None
        else:
            exact = None if dtype is None else exact_logits(module, layout, asked)
            if dtype is not None:
                _round(module, dtype)
                layout = layout_of(module, origin)
        layout.write(folder)
        write_case(module, layout, case, asked, exact, merged=not adapter_only)
        facts = None if origin is None else CardFacts.of(origin)
        snippet = None if facts is None else write_card(folder, module, layout, facts, name or to.name)
        figures = verify(folder, case, layout, None if snippet is None else snippet.code)
        if snippet is not None:
            figures["asked"] = load(folder).answer(folder / snippet.image, snippet.question)
        if origin is not None and facts is not None:
            write_card(folder, module, layout, facts, name or to.name, figures)
            write_record(folder, origin, layout, figures, dtype=dtype, adapter_only=adapter_only)
        if to.is_dir():
            to.rmdir()
        shutil.move(folder, to)
    if layout.advice:
        warnings.warn(f"{to}: {layout.advice}", stacklevel=2)
    return to


def layout_of(module: MultimodalModule, origin: Origin | None = None, adapters: bool = True) -> HfFolder | OwnFolder:
    """The layout of transformers where it holds the net, else our own, for which the net's run must be known.

    Args:
        adapters: Whether adapters are merged; else they are left out.

    Raises:
        ValueError: Neither holds it.
    """
    try:
        return hf_folder(module, adapters)
    except ValueError as error:
        if origin is None or origin.model is None or not hasattr(module.net, "logits"):
            raise
        reason = f"in the layout of lightning-mllm, which `load` and `mllm ask` read: {error}"
        return OwnFolder(module=module, settings=origin.model, advice=reason)


def hf_folder(module: MultimodalModule, adapters: bool = True) -> HfFolder:
    """A built net as a folder of transformers.

    Args:
        adapters: Whether adapters are merged; else they are left out.

    Raises:
        ValueError: Its architecture has no layout in transformers, or the layout cannot hold the net.
    """
    form, parts = folder_format(type(module), module.processor), module.components.items()
    if form is None or form.write is None:
        known = ", ".join(sorted({each.architecture.rpartition(".")[2] for each in folder_formats().values()}))
        raise ValueError(f"{type(module).__name__}: has no layout in transformers, expected one of {known}")
    return form.write(
        TrainedNet(
            net=module.net,
            components={name: spec.spec if isinstance(spec, ImportedPart) else spec for name, spec in parts},
            processor=module.processor,
            decoding={task: asdict(how) for task, how in module.decoding.items()},
            lora_scale=None if module.lora is None else module.lora.scale * adapters,
        )
    )


def refuse_full(to: Path) -> None:
    """Raises ValueError if `to` exists and is anything but an empty folder."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to}: found files there, expected an empty or absent folder")


def _round(module: MultimodalModule, dtype: torch.dtype) -> None:
    """Folds adapters into what they adapt, in float32, and rounds every parameter once."""
    if module.lora is not None:
        fold_lora(module, module.lora.scale, dict.fromkeys(module.state_dict(), dtype))
    cast_parameters(module, dtype)


def verify(folder: Path, case: Path, layout: Layout | None = None, snippet: str | None = None) -> dict[str, Any]:
    """Compares in a fresh process, which imports transformers and nothing of ours but the comparison.

    Args:
        layout: The folder's; its caveat is added to a difference, where something is known that may explain it.
        snippet: Code that the folder's card prints, run there too.

    Returns:
        How close the folder is, and what the snippet printed: see `verify.py`.

    Raises:
        ValueError: The folder cannot be loaded, or does something else than our net, or takes too long.
    """
    # Where transformers copies the code of a folder before it runs it; gone with the case.
    modules = str(case.parent / "modules")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "HF_MODULES_CACHE": modules}
    name = "verify_own_layout" if isinstance(layout, OwnFolder) else "verify"
    command = [sys.executable, "-m", f"lightning_mllm.export.{name}", str(folder), str(case)]
    if snippet is not None:
        (case / "snippet.py").write_text(snippet, encoding="utf-8")
    if isinstance(layout, AdapterFolder):
        command.append(str(layout.base))
    settings: Mapping[str, Any] = {"env": environment, "capture_output": True, "text": True, "check": False}
    try:
        ended = subprocess.run(command, timeout=60 * MINUTES, **settings)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"the export was not compared with the net within {MINUTES} minutes, so it was removed; expected a machine"
            " with memory for the net in float32"
        ) from None
    if ended.returncode:
        lines = (ended.stdout if ended.returncode == 1 and ended.stdout.strip() else ended.stderr).strip().splitlines()
        reason = lines[-1] if lines else f"the process ended with {ended.returncode}"
        caveat = "" if layout is None else getattr(layout, "caveat", "")
        raise ValueError(f"the export differs from the net, so it was removed: {reason}{caveat}")
    return json.loads((case / "figures.json").read_text(encoding="utf-8"))

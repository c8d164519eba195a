"""Writes a checkpoint under a hidden name, publishes it, and removes those that it replaces."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from lightning_mllm.collectives import rank_and_world
from lightning_mllm.training.checkpoints.finding import PART, REMOVED, STEPS, note_written, number_of
from lightning_mllm.training.checkpoints.manifest import OLD, STATE, FileFacts, Values, load_plain, write_manifest
from lightning_mllm.weights.files import sync_folder
from lightning_mllm.weights.finite import refuse_non_finite

FILE_BYTES = 2**29
"""What a rank writes into one file, if a tensor is not larger: so much is copied twice more while it writes."""
WEIGHTS, TENSORS = "weights.", "tensors"
"""The prefix of weights; and where in a Lightning checkpoint other tensors are that ranks own parts of."""


class Replaced(NamedTuple):
    """Which checkpoints make room for a new one, once that is complete."""

    pattern: str
    """Of their names, in the same folder."""
    keep: int = 1
    """How many stay, the new one among them: those of the largest numbers up to its own."""


@dataclasses.dataclass
class _Written:
    """Of a file that a rank has written: `storage_data` of a WriteResult."""

    relative_path: str
    facts: FileFacts


def take_tensors(checkpoint: Values) -> dict[str, Tensor]:
    """Takes weights, moments and other large tensors out of a Lightning checkpoint, and gives them by name.

    An entry of the optimizer's state that is taken out is None in the checkpoint.
    """
    weights = checkpoint.pop("state_dict")
    tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in weights.items()}
    states = []
    for state in checkpoint.get("optimizer_states", ()):
        names, kept = parameter_names(state), {}
        for index, entries in state["state"].items():
            own = {key: value for key, value in entries.items() if isinstance(value, Tensor) and value.ndim}
            tensors |= {f"{key}.{names[index]}": value for key, value in own.items()}
            kept[index] = {**entries, **dict.fromkeys(own)}
        states.append({**state, "state": kept})
    if states:
        checkpoint["optimizer_states"] = states
    return {name: tensor.detach() for name, tensor in {**tensors, **checkpoint.pop(TENSORS, {})}.items()}


def parameter_names(state: Values) -> dict[int, str]:
    """Index -> name of the parameters in an optimizer's state."""
    groups = state["param_groups"]
    return {i: name for each in groups for i, name in zip(each["params"], each["param_names"], strict=True)}


class Writer(HuggingFaceStorageWriter):
    """Writes into a folder beside `path`; when all ranks have written, rank 0 publishes it.

    Args:
        path: Where the checkpoint will be.
        tensors: What will be written.
        state: The plain values, as the content of a file.
        replaces: What is removed then.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], state: bytes, replaces: Replaced | None) -> None:
        self.final, self.beside = path, path.with_name(f".{path.name}{PART}")
        self.state, self.replaces = state, replaces
        self.bytes = sum(each.nbytes for each in tensors.values()) + len(state)
        """Of all ranks together, about."""
        self.staged: Mapping[str, Tensor] = {}
        """What this rank writes, as it was when the save began."""
        super().__init__(str(self.beside), fqn_to_index_mapping=_file_numbers(tensors), save_distributed=True)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        # Rank 0 alone, before any rank writes: what a killed run left.
        pattern = self.replaces.pattern if self.replaces else self.final.name
        for end in (PART, REMOVED):
            for left in (self.final.with_name(f".{self.final.name}{end}"), *self._folder.glob(f".{pattern}{end}")):
                shutil.rmtree(left, ignore_errors=True)
        self.beside.mkdir(parents=True)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        for name, tensor in self.staged.items():
            refuse_non_finite(name, tensor.to_local() if isinstance(tensor, DTensor) else tensor)
        written = super().write_data(plan, planner).wait()
        # In this thread, which is not that of training; the file has just been written and is still in memory.
        names = {each.storage_data.relative_path for each in written}
        facts = {name: _Written(name, FileFacts.of(self.beside / name)) for name in names}
        told: Future[list[WriteResult]] = Future()
        told.set_result(
            [dataclasses.replace(each, storage_data=facts[each.storage_data.relative_path]) for each in written]
        )
        return told

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = {each.storage_data.relative_path: each.storage_data.facts for rank in results for each in rank}
        for name in sorted(files):
            if not (self.beside / name).is_file():
                raise OSError(f"{name} is not on the disk of rank 0, expected a folder that all nodes share")
        state = self.beside / STATE
        with state.open("wb") as stream:
            stream.write(self.state)
            stream.flush()
            os.fsync(stream.fileno())
        load_plain(state)  # what cannot be read again is not published
        write_manifest(self.beside, self.final.name, {**dict(sorted(files.items())), STATE: FileFacts.of(state)})
        earlier = self.final.with_name(f".{self.final.name}{OLD}")
        if self.final.exists():
            shutil.rmtree(earlier, ignore_errors=True)
            self.final.rename(earlier)
        self.beside.rename(self.final)
        sync_folder(self._folder)
        self._remove(earlier)
        if self.replaces is not None:
            number = number_of(self.final.name, self.replaces.pattern)
            if self.replaces.pattern == STEPS and number is not None:
                note_written(self._folder, number)
            for old in self._replaced(self.replaces):
                self._remove(old)

    @property
    def _folder(self) -> Path:
        return self.final.parent

    def _replaced(self, replaces: Replaced) -> Iterable[Path]:
        own = number_of(self.final.name, replaces.pattern)
        numbers = {each: number_of(each.name, replaces.pattern) for each in self._folder.glob(replaces.pattern)}
        earlier = sorted((number, each) for each, number in numbers.items() if own and number and number < own)
        kept = {self.final, *(each for _, each in earlier[max(len(earlier) - replaces.keep + 1, 0) :])}
        yield from (each for each, number in numbers.items() if number is not None and each not in kept)
        yield from self._folder.glob(f".{replaces.pattern}{OLD}")

    def _remove(self, path: Path) -> None:
        """At once under its name, then on the disk: half of a checkpoint never has a name."""
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        removed = path.with_name(f".{path.name.lstrip('.')}{REMOVED}")
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def state_bytes(state: Values) -> bytes:
    """The content of `state.pt`."""
    content = BytesIO()
    torch.save(state, content)
    return content.getvalue()


def write(writer: Writer, group: dist.ProcessGroup | None) -> None:
    """Writes and publishes; where it fails, nothing of it stays.

    Args:
        group: Of all ranks, where each writes its part.

    Raises:
        ValueError: A tensor holds a value that is no number, or the state something that is no plain value.
    """
    try:
        dcp.save(dict(writer.staged), storage_writer=writer, process_group=group, no_dist=group is None)
    except BaseException:
        shutil.rmtree(writer.beside, ignore_errors=True)
        raise
    finally:
        writer.staged = {}  # a copy of all that training holds


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """In which of a rank's files each tensor is."""
    _, world = rank_and_world()
    numbers, total = {}, 0
    for name, tensor in tensors.items():
        total += tensor.nbytes // (world if isinstance(tensor, DTensor) else 1)
        numbers[name] = total // FILE_BYTES + 1
    return numbers

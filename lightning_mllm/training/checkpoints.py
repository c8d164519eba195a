"""Sharded checkpoints: a folder in which every rank writes the tensors that it owns, and which one rename publishes.

step-200/manifest.json                                 names and sizes of the files; the last one that is written
step-200/state.pt                                      loops, callbacks, schedules, random states: plain values
step-200/shard-00001-model-00001-of-00001.safetensors  what rank 0 owns of the weights and the optimizer's moments

Tensors are called `weights.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, `average.0.NAME`. torch.distributed.checkpoint
writes and reads them; any number of ranks reads what any other number wrote, each rank only its own slices. Nothing is
unpickled but plain values (`weights_only`): the pickled metadata file of torch.distributed.checkpoint is not used.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from lightning_mllm.collectives import cpu_group, from_first_rank, rank_and_world
from lightning_mllm.weights.files import sync_folder, write_text
from lightning_mllm.weights.safetensors_writer import Layout, TensorStream

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.pt"
FILE_BYTES = 2**29
"""What a rank writes into one file, if a tensor is not larger: so much is copied twice more while it writes."""
Values = dict[str, Any]
"""Plain values by name: numbers, texts, tensors, and lists and dictionaries of them."""
WEIGHTS, TENSORS = "weights.", "tensors"
"""The prefix of weights; and where in a Lightning checkpoint other tensors are that ranks own parts of."""


class ShardedCheckpointIO(CheckpointIO):
    """Writes checkpoints in the background and reads them in place.

    A save copies to the CPU what this rank owns, and returns; what is written is the state at that moment. The next
    save, a read and the end of training wait for it. A checkpoint that is not complete is never under its name, and
    those that it replaces are removed after it has been published.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[Path, Future[None]] | None = None
        # torch.distributed.checkpoint tells that one process is alone.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    # ---- Lightning's interface ---------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Values, path: str | Path, storage_options: str | None = None) -> None:
        """Saves what a Trainer dumps.

        Args:
            checkpoint: Its tensors are taken out.
            storage_options: Glob pattern of the checkpoints beside `path` that this one replaces.
        """
        self.save(Path(path), take_tensors(checkpoint), checkpoint, replaces=storage_options or "")

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> Values:
        """The plain values, and under `tensors` what reads the rest into the net and the optimizer (`restore`).

        All ranks call it and read the path that rank 0 gives.

        Raises:
            ValueError: There is no checkpoint, or it is damaged, or it holds something other than tensors and plain
                values.
        """
        self.wait()
        # Where rank 0 alone writes, another rank may have looked for the newest one before that was published.
        path = Path(from_first_rank(path))
        # Lightning finds no weights to load.
        return {**read_state(path), "state_dict": {}, TENSORS: SavedTensors(path)}

    def remove_checkpoint(self, path: str | Path) -> None:
        self.wait()
        shutil.rmtree(path, ignore_errors=True)

    def teardown(self) -> None:
        self.wait()
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    # ---- in the background -------------------------------------------------------------------------------------

    def save(self, path: Path, tensors: Mapping[str, Tensor], state: Values, replaces: str = "") -> None:
        """Copies the tensors and begins to write; every rank calls it, and where none is sharded rank 0 writes all.

        Raises:
            OSError: An earlier save failed.
        """
        self.wait()
        rank, _ = rank_and_world()
        sharded = any(isinstance(each, DTensor) for each in tensors.values())
        if rank and not sharded:
            return
        if sharded and self._group is None:
            # Collectives of the thread that writes must not meet those of training.
            self._group = cpu_group()
        content = io.BytesIO()
        torch.save(state, content)
        writer = _Writer(path, tensors, content.getvalue(), replaces)
        staged = writer.stage(dict(tensors))
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = path, executor.submit(_write, staged, writer, self._group if sharded else None)
        executor.shutdown(wait=False)

    def check(self) -> None:
        """Raises what the save in the background raised, if it is over.

        Raises:
            OSError: It failed.
        """
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            OSError: The checkpoint cannot be written.
        """
        if self._pending is None:
            return
        (path, future), self._pending = self._pending, None
        if (error := future.exception()) is not None:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise OSError(f"{path}: cannot write the checkpoint ({reason[-1]})") from error


def newest(folder: Path, pattern: str = "step-*") -> Path | None:
    """The complete checkpoint with the largest number in `folder`."""
    found = [each.parent for each in folder.glob(f"{pattern}/{MANIFEST}")]
    return max(found, key=lambda each: int(each.name.rpartition("-")[2]), default=None)


def read_state(path: Path) -> Values:
    """The plain values of a checkpoint, all of whose files are there at full length.

    Raises:
        ValueError: As `ShardedCheckpointIO.load_checkpoint`.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{path}: found no checkpoint, expected a folder with {MANIFEST}")
    with _readable(path):
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, size in files.items():
            found = (path / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} of {size} bytes")
        return torch.load(path / STATE, map_location="cpu", weights_only=True)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Tells of whatever goes wrong that the checkpoint at `path` cannot be read."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        reason = lines[-1 if isinstance(error, CheckpointException) else 0]
        raise ValueError(
            f"{path}: cannot read the checkpoint ({type(error).__name__}: {reason}), expected tensors and plain values;"
            " delete it to start the stage anew"
        ) from error


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each read whole when it is asked for, or into what is there already.

    Raises:
        ValueError: A file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _readable(path):
            self._reader = _Reader(str(path))

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.metadata.state_dict_metadata)

    def __len__(self) -> int:
        return len(self._reader.metadata.state_dict_metadata)

    def __getitem__(self, name: str) -> Tensor:
        whole = self.like(name)
        self.read_into({name: whole})
        return whole

    def _facts(self, name: str) -> TensorStorageMetadata:
        found = self._reader.metadata.state_dict_metadata[name]
        assert isinstance(found, TensorStorageMetadata)
        return found

    def dtype(self, name: str) -> torch.dtype:
        return self._facts(name).properties.dtype

    def shape(self, name: str) -> torch.Size:
        return self._facts(name).size

    def like(self, name: str) -> Tensor:
        """A whole tensor on the CPU with no values yet."""
        return torch.empty(self.shape(name), dtype=self.dtype(name))

    def named(self, prefix: str) -> list[str]:
        """Names below `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self if name.startswith(prefix)]

    @torch.no_grad()
    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Copies into each target what this rank has of it; no other rank is asked.

        Raises:
            ValueError: A file is damaged.
        """
        with _readable(self.path):
            dcp.load(dict(targets), storage_reader=self._reader, no_dist=True)


class SavedWeights(TensorStream):
    """The weights in a checkpoint, under the net's names, of which one is in memory at a time."""

    def __init__(self, path: Path) -> None:
        self.saved = SavedTensors(path)

    def layout(self) -> Layout:
        names = self.saved.named(WEIGHTS)
        return {name: (self.saved.dtype(WEIGHTS + name), self.saved.shape(WEIGHTS + name)) for name in names}

    def pieces(self, name: str) -> Iterable[Tensor]:
        yield self.saved[WEIGHTS + name]


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


def restore(checkpoint: Values, weights: Mapping[str, Tensor], *, with_optimizer: bool) -> None:
    """Reads the weights into the net, and the moments into the checkpoint's optimizer state.

    Args:
        checkpoint: What `ShardedCheckpointIO.load_checkpoint` gave.
        weights: What the net trains, by name: tensors or DTensors, with memory.

    Raises:
        ValueError: Names or shapes differ from those of the net, or a file is damaged.
    """
    saved: SavedTensors = checkpoint[TENSORS]
    if odd := sorted(set(weights) ^ set(saved.named(WEIGHTS))):
        raise ValueError(
            f"the checkpoint and the net differ in {len(odd)} trained tensors, {odd[0]!r} is only in the"
            f" {'net' if odd[0] in weights else 'checkpoint'}, expected the same names"
        )
    for name, tensor in weights.items():
        if (found := saved.shape(WEIGHTS + name)) != tensor.shape:
            raise ValueError(f"{name}: the checkpoint has shape {tuple(found)}, expected {tuple(tensor.shape)}")
    targets = {WEIGHTS + name: tensor for name, tensor in weights.items()}
    for state in checkpoint.get("optimizer_states", ()) if with_optimizer else ():
        names = parameter_names(state)
        for index, entries in state["state"].items():
            for key in [key for key, value in entries.items() if value is None]:
                name = f"{key}.{names[index]}"
                like = weights[names[index]].detach()
                entries[key] = targets[name] = torch.empty_like(like, dtype=saved.dtype(name))
    saved.read_into(targets)


def parameter_names(state: Values) -> dict[int, str]:
    """Index -> name of the parameters in an optimizer's state."""
    groups = state["param_groups"]
    return {i: name for each in groups for i, name in zip(each["params"], each["param_names"], strict=True)}


class _Reader(HuggingFaceStorageReader):
    """Reads the headers of the files once."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.metadata = super().read_metadata()

    def read_metadata(self) -> Metadata:
        return self.metadata


class _Writer(HuggingFaceStorageWriter):
    """Writes into a folder beside `path`; when all ranks have written, rank 0 publishes it.

    Args:
        path: Where the checkpoint will be.
        tensors: What will be written.
        state: The plain values, as the content of a file.
        replaces: Glob pattern of what is removed then.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], state: bytes, replaces: str) -> None:
        self.final, self.beside = path, path.with_name(f".{path.name}.part")
        self.state, self.replaces = state, replaces
        super().__init__(str(self.beside), fqn_to_index_mapping=_file_numbers(tensors), save_distributed=True)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        # Rank 0 alone, before any rank writes: what a killed run left.
        for old in (self.beside, *self._siblings(f".{self.replaces}.part")):
            shutil.rmtree(old, ignore_errors=True)
        self.beside.mkdir(parents=True)
        return super().prepare_global_plan(plans)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        names = {each.storage_data.relative_path for rank in results for each in rank}
        for name in sorted(names):
            if not (self.beside / name).is_file():
                raise OSError(f"{name} is not on the disk of rank 0, expected a folder that all nodes share")
        with (self.beside / STATE).open("wb") as stream:
            stream.write(self.state)
            stream.flush()
            os.fsync(stream.fileno())
        files = {name: (self.beside / name).stat().st_size for name in (*sorted(names), STATE)}
        write_text(self.beside / MANIFEST, json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n")
        earlier = self.final.with_name(f".{self.final.name}.old")
        if self.final.exists():
            self.final.rename(earlier)
        self.beside.rename(self.final)
        sync_folder(self.final.parent)
        for old in (earlier, *self._siblings(self.replaces)):
            shutil.rmtree(old, ignore_errors=True)

    def _siblings(self, pattern: str) -> Iterable[Path]:
        found = self.final.parent.glob(pattern) if self.replaces else ()
        return [each for each in found if each != self.final]


def _write(tensors: dict[str, Tensor], writer: _Writer, group: dist.ProcessGroup | None) -> None:
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    except BaseException:
        shutil.rmtree(writer.beside, ignore_errors=True)
        raise


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """In which of a rank's files each tensor is."""
    _, world = rank_and_world()
    numbers, total = {}, 0
    for name, tensor in tensors.items():
        total += tensor.nbytes // (world if isinstance(tensor, DTensor) else 1)
        numbers[name] = total // FILE_BYTES + 1
    return numbers

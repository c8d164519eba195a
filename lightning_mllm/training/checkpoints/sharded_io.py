"""Saves and loads checkpoints for a Trainer."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from lightning_mllm.collectives import cpu_group, from_first_rank, rank_and_world
from lightning_mllm.training.checkpoints.finding import REMEDY, candidates, newest_whole, number_of
from lightning_mllm.training.checkpoints.manifest import Values, damage
from lightning_mllm.training.checkpoints.reading import SavedTensors, read_state
from lightning_mllm.training.checkpoints.writing import TENSORS, Replaced, Writer, state_bytes, take_tensors, write
from lightning_mllm.weights.disk import NotWritten


class ShardedCheckpointIO(CheckpointIO):
    """Writes checkpoints in the background and reads them in place.

    A save copies to the CPU what this rank owns, and returns; what is written is the state at that moment. The next
    save, a read and the end of training wait for it. A checkpoint that is not complete is never under its name, and
    those that it replaces are removed after it has been published.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[Writer, Future[None]] | None = None
        self._chosen: dict[Path, Path] = {}
        # torch.distributed.checkpoint tells that one process is alone.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    # ---- Lightning's interface ---------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: Values, path: str | Path, storage_options: Replaced | None = None) -> None:
        """Saves what a Trainer dumps.

        Args:
            checkpoint: Its tensors are taken out.
            storage_options: The checkpoints beside `path` that this one replaces.
        """
        self.save(Path(path), take_tensors(checkpoint), checkpoint, replaces=storage_options)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> Values:
        """The plain values, and under `tensors` what reads the rest into the net and the optimizer (`restore`).

        All ranks call it; what is read is what `choose` gives.

        Raises:
            ValueError: As `choose`, or it holds something other than tensors and plain values.
        """
        path = self.choose(path)
        # Lightning finds no weights to load.
        return {**read_state(path), "state_dict": {}, TENSORS: SavedTensors(path)}

    def choose(self, path: str | Path) -> Path:
        """The checkpoint at `path`, or the newest whole one in the folder `path`, as all ranks see it.

        All ranks call it, and use what rank 0 gave. Each looks for every file and reads its share of them. A line is
        printed for each checkpoint that is passed over.

        Raises:
            ValueError: The checkpoint is damaged, or no whole one is in the folder; by all ranks.
        """
        self.wait()
        path = Path(from_first_rank(str(path)))
        if path not in self._chosen:
            self._chosen[path] = self._found(path)
        return self._chosen[path]

    def _found(self, path: Path) -> Path:
        if number_of(path.name) is not None or not from_first_rank(bool(candidates(path))):
            if reason := self._damage(path):
                raise ValueError(f"{path}: found no whole checkpoint ({reason}), expected one; {REMEDY}")
            return path
        found = newest_whole(path, from_first_rank(candidates(path)), self._damage)
        if rank_and_world()[0] == 0:
            for sentence in found.skipped:
                print(sentence, flush=True)
        if found.path is None:
            raise ValueError(f"{path}: found no whole checkpoint, expected one to go on from; {REMEDY}")
        return found.path

    @staticmethod
    def _damage(path: Path) -> str:
        """As `manifest.damage`, by all ranks together."""
        rank, world = rank_and_world()
        own = damage(path, rank, world)
        if world == 1:
            return own
        reasons: list[str] = [""] * world
        dist.all_gather_object(reasons, own)
        found = next(((number, each) for number, each in enumerate(reasons) if each), None)
        if found is None:
            return ""
        same = all(each == found[1] for each in reasons)
        return found[1] if same else f"{found[1]} (as rank {found[0]} sees it)"

    def remove_checkpoint(self, path: str | Path) -> None:
        self.wait()
        shutil.rmtree(path, ignore_errors=True)

    def teardown(self) -> None:
        self.wait()
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    # ---- in the background -------------------------------------------------------------------------------------

    def save(self, path: Path, tensors: Mapping[str, Tensor], state: Values, replaces: Replaced | None = None) -> None:
        """Copies the tensors and begins to write; every rank calls it, and where none is sharded rank 0 writes all.

        Raises:
            NotWritten: An earlier save failed.
        """
        self.wait()
        rank, _ = rank_and_world()
        sharded = any(isinstance(each, DTensor) for each in tensors.values())
        if rank and not sharded:
            return
        if sharded and self._group is None:
            # Collectives of the thread that writes must not meet those of training.
            self._group = cpu_group()
        self._chosen.clear()
        writer = Writer(path, tensors, state_bytes(state), replaces)
        writer.staged = writer.stage(dict(tensors))
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = writer, executor.submit(write, writer, self._group if sharded else None)
        executor.shutdown(wait=False)

    def check(self) -> None:
        """Raises what the save in the background raised, if it is over.

        Raises:
            NotWritten: It failed.
        """
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            NotWritten: The checkpoint cannot be written; earlier ones are as they were.
            ValueError: It holds a value that is no number, or something that could not be read again.
        """
        if self._pending is None:
            return
        (writer, future), self._pending = self._pending, None
        if (error := future.exception()) is not None:
            if isinstance(error, CheckpointException):
                # Of the ranks that failed, the first; the others waited for it.
                error = next((each for each, _ in error.failures.values()), error)
            if isinstance(error, ValueError):
                raise ValueError(f"{writer.final}: not written, {error}; earlier checkpoints are whole") from error
            raise NotWritten(writer.final, error, writer.bytes, "; earlier checkpoints are whole") from error

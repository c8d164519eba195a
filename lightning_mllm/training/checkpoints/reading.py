"""Reads a checkpoint: the plain values, and each rank's slices of the tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from lightning_mllm.training.checkpoints.manifest import STATE, Values, load_plain, read_manifest
from lightning_mllm.training.checkpoints.writing import TENSORS, WEIGHTS, parameter_names
from lightning_mllm.weights.safetensors_writer import Layout, TensorStream


def read_state(path: Path) -> Values:
    """The plain values of a checkpoint.

    Raises:
        ValueError: There is no checkpoint, or it is damaged, or it holds something other than plain values.
    """
    with _readable(path):
        read_manifest(path)
        return load_plain(path / STATE)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Tells of whatever goes wrong that the checkpoint at `path` cannot be read."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        lines = str(error).strip().splitlines() or [""]
        reason = lines[-1 if isinstance(error, CheckpointException) else 0]
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{path}: cannot read the checkpoint ({kind}{reason}), expected a whole one") from error


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


class _Reader(HuggingFaceStorageReader):
    """Reads the headers of the files once."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.metadata = super().read_metadata()

    def read_metadata(self) -> Metadata:
        return self.metadata

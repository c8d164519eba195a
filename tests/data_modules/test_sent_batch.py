"""A batch that was sent is the batch: every tensor, its layout, and what is no tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_modules.loader import Collate, SampleLoader
from data_modules.sent_batch import ALIGNED, SentBatch
from lightning_mllm.contracts import Batch
from tests.data_modules.files import Echo
from tests.data_modules.test_loader import small_batch


def given() -> Batch:
    """Tensors of several dtypes, one of them large, one empty, one not contiguous."""
    tokens = torch.arange(21).view(3, 7)
    return replace(
        small_batch(),
        ids=["a", "b", "c"],
        tokens=tokens,
        labels=torch.arange(21).view(7, 3).T,
        kinds=(tokens % 2).byte(),
        segments=torch.ones(3, 7, dtype=torch.int32),
        positions=tokens,
        images=torch.arange(48 * 2000).view(-1, 3, 4, 4).byte(),
        num_images=2,
        image_ids=torch.zeros(0, dtype=torch.long),
        visual_counts=(4, 5),
    )


def tensors(batch: Batch) -> list[Tensor]:
    found = list[Tensor]()

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(note)
    return found


def test_what_is_received_is_what_was_sent() -> None:
    batch = given()
    assert batch.layout
    again = SentBatch.of(batch).received()
    for one, other in zip(tensors(batch), tensors(again), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype and one.shape == other.shape
    plain = {name for name, value in vars(batch).items() if isinstance(value, list | tuple | int)}
    assert all(getattr(again, name) == getattr(batch, name) for name in plain) and "visual_counts" in plain
    assert vars(again)["layout"].runs == batch.layout.runs, "found by the worker, not anew"


def test_pixels_are_sent_by_themselves() -> None:
    sent = SentBatch.of(given())
    received = sent.received()
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors(received) if tensor.numel()}
    assert len(storages) == 2 and received.images.untyped_storage().data_ptr() != sent.buffer.data_ptr()
    assert all(tensor.data_ptr() % ALIGNED == 0 for tensor in tensors(received))


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_send_them(workers: int) -> None:
    """A batch of a worker has its small tensors in one piece of memory; without workers nothing is copied."""
    loader: Any = SampleLoader(Rows(), collate_fn=Collate(Given(), "right"), batch_size=2, num_workers=workers)
    (batch,) = loader
    assert torch.equal(batch.tokens, given().tokens) and batch.layout.runs == given().layout.runs
    pieces = {tensor.untyped_storage().data_ptr() for tensor in (batch.tokens, batch.labels, batch.kinds)}
    assert len(pieces) == (1 if workers else 3)


class Rows(Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return index


class Given(Echo):
    def collate(self, rows: Any, *, padding: str = "right") -> Any:
        return given()

"""What the host knows of a batch's rows, told of rows in which it can be seen by eye."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Batch, TokenKind
from lightning_mllm.layout import Layout, map_tensors, runs_of

I, B, E = (int(kind) for kind in (TokenKind.IMAGE, TokenKind.IMAGE_BEGIN, TokenKind.IMAGE_END))  # noqa: E741
X = IGNORE
LABELS = torch.tensor([[X, X, X, X, 7, 8, X], [9, X, 3, 4, X, X, X]])
SEGMENTS = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 2, 2, 0, 0, 0]])
KINDS = torch.tensor([[0, B, I, I, E, 0, 0], [I, 0, 0, 0, 0, 0, 0]], dtype=torch.uint8)


def batch(**fields: Any) -> Batch:
    given: dict[str, Any] = {"labels": LABELS, "segments": SEGMENTS, "kinds": KINDS, **fields}
    images = torch.zeros(2, 3, 1, 1, dtype=torch.uint8)
    return Batch(ids=["a", "b"], tokens=LABELS, positions=LABELS, images=images, num_images=2, **given)


def test_labels_are_shifted_within_segments() -> None:
    """Row b: the first label of a row, and of a segment, is predicted by nothing."""
    found = batch().layout.supervised
    assert found.hidden.tolist() == [3, 4, 7 + 2] and found.targets.tolist() == [7, 8, 4]
    assert found.samples.tolist() == [0, 0, 1] and found.counts.tolist() == [2, 1]


def test_targets_of_a_decoder_are_predicted_at_their_own_place() -> None:
    found = batch(targets=torch.tensor([[5, 6], [4, X]])).layout.supervised
    assert found.hidden.tolist() == [0, 1, 2] and found.targets.tolist() == [5, 6, 4]
    assert found.samples.tolist() == [0, 0, 1] and found.counts.tolist() == [2, 1]


def test_slots_and_runs() -> None:
    found = batch().layout
    assert {kind: at.tolist() for kind, at in found.slots.items()} == {I: [2, 3, 7], B: [1], E: [4]}
    assert found.runs == ((0, 1), (B, 1), (I, 2), (E, 1), (0, 2), (I, 1), (0, 6))
    assert runs_of(torch.zeros(2, 3, dtype=torch.uint8)) == ((0, 6),)
    other = Layout.of(LABELS, SEGMENTS, torch.full_like(KINDS, 9))
    assert other.slots[9].tolist() == list(range(14)) and not len(other.slots[I])


@pytest.mark.parametrize(
    ("segments", "packed", "padded", "left"),
    [
        ([[1, 1], [1, 1]], False, False, False),
        ([[1, 0], [1, 1]], False, True, False),
        ([[1, 1], [0, 1]], False, True, True),
        ([[1, 2], [1, 1]], True, False, False),
    ],
)
def test_padding_and_packing(segments: list[list[int]], packed: bool, padded: bool, left: bool) -> None:
    rows = torch.tensor(segments)
    found = Layout.of(rows, rows, torch.zeros_like(rows))
    assert (found.packed, found.padded, found.padded_left) == (packed, padded, left)


def test_other_rows_have_a_layout_of_their_own() -> None:
    first = batch()
    assert first.layout is first.layout and first.noted(sources=["x", "y"]).layout is first.layout
    assert replace(first, labels=torch.full_like(LABELS, X)).layout.supervised.counts.tolist() == [0, 0]
    with pytest.raises(AssertionError, match="labels"):
        first.noted(labels=LABELS)


class Pair(NamedTuple):
    one: Tensor
    other: str


@dataclass(frozen=True)
class Held:
    some: tuple[Tensor, list[dict[str, Tensor]]]
    pair: Pair
    number: int = 3


def test_every_tensor_is_changed_wherever_it_is() -> None:
    one = torch.ones(1)
    held = Held((one, [{"a": one}]), Pair(one, "text"))
    found = map_tensors({"held": held, "none": None}, lambda tensor: tensor + 1)
    assert found["none"] is None and held.pair.one is one
    assert isinstance(found["held"], Held) and found["held"].number == 3 and found["held"].pair.other == "text"
    assert [found["held"].some[0], found["held"].some[1][0]["a"], found["held"].pair.one] == [2, 2, 2]


def test_a_batch_moves_with_all_it_holds_but_what_the_step_keeps_on_the_host() -> None:
    known = batch()
    moved = known.noted(step=(known,)).to("meta")
    assert moved.layout.supervised.hidden.is_meta and all(each.is_meta for each in moved.layout.slots.values())
    assert moved.images.is_meta and moved.layout.runs == known.layout.runs and moved.ids == known.ids
    assert not moved.step[0].labels.is_meta and not known.labels.is_meta


def test_copies_do_not_block_where_they_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    blocking, pinned = list[bool](), list[Tensor]()

    def to(self: Tensor, device: str, non_blocking: bool = False) -> Tensor:
        blocking.append(not non_blocking)
        return self

    def pin_memory(self: Tensor) -> Tensor:
        pinned.append(self)
        return self

    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    batch().to("cuda", non_blocking=True)
    held = len(blocking)
    assert held > 10 and not any(blocking)
    batch().to("cuda")
    assert blocking[held:] == [True] * held
    batch().pin_memory()
    assert len(pinned) == held


def test_what_is_on_its_device_is_not_copied() -> None:
    own = batch()
    assert own.to("cpu") is own
    moved = own.to("meta")
    assert moved is not own and moved.tokens.is_meta and moved.layout.supervised.hidden.is_meta and moved.ids == own.ids
    assert not own.tokens.is_meta and not own.layout.supervised.hidden.is_meta

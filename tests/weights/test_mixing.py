"""Weighted sums of weights: exact where they can be, linear in between, one tensor of a source at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_mllm.weights import mixing
from lightning_mllm.weights.files import TensorFiles, write_in_pieces, write_tensors
from lightning_mllm.weights.mixing import Mixture, coefficients

NAMES = ("w", "norm", "scale")


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((7, 3), (5,), ())
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in zip(NAMES, shapes, strict=True)}


def stored(mixed: Mixture, name: str) -> Tensor:
    """What is written."""
    dtype, shape = mixed.layout()[name]
    return torch.cat([torch.empty(0, dtype=dtype), *mixed.pieces(name)]).view(shape)


def same(found: Tensor, expected: Tensor) -> bool:
    """Bits, the sign of a zero included."""
    return found.dtype == expected.dtype and torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_source_that_alone_has_a_weight_comes_out_to_the_bit(dtype: torch.dtype) -> None:
    a, b = tensors(1, dtype), tensors(2, dtype)
    a["norm"][:3] = torch.tensor([-0.0, float("inf"), float("nan")])
    b["norm"][:3] = torch.tensor([float("nan"), 0.0, -0.0])
    for weights, expected in (({"a": 1.0, "b": 0.0}, a), ({"a": 0.0, "b": 1.0}, b)):
        mixed = Mixture({"a": a, "b": b}, weights)
        for name in NAMES:
            assert same(mixed[name].view(-1), expected[name].view(-1))
            assert same(stored(mixed, name).view(-1), expected[name].view(-1))


@pytest.mark.parametrize("piece", [2**20, 4])
def test_linear_in_between(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "PIECE", piece)
    a, b, c = tensors(1), tensors(2), tensors(3)
    for beta in (0.1, 0.5, 0.9):
        mixed = Mixture({"a": a, "b": b}, {"a": beta, "b": 1 - beta})
        for name in NAMES:
            torch.testing.assert_close(mixed[name], beta * a[name] + (1 - beta) * b[name], rtol=0, atol=1e-6)
    mixed = Mixture({"a": a, "b": b, "c": c}, {"a": 0.2, "b": 0.3, "c": 0.5})
    for name in NAMES:
        torch.testing.assert_close(mixed[name], 0.2 * a[name] + 0.3 * b[name] + 0.5 * c[name], rtol=0, atol=1e-6)


def test_what_all_agree_in_stays_as_it_is() -> None:
    """0.7 x + 0.3 x is not x in floating point: a tensor that no source trained must not drift."""
    a, b = tensors(1), tensors(2)
    assert not torch.equal(0.7 * a["w"] + 0.3 * a["w"], a["w"])
    b["w"], b["norm"][2] = a["w"].clone(), a["norm"][2]
    mixed = Mixture({"a": a, "b": b}, {"a": 0.7, "b": 0.3})
    assert torch.equal(mixed["w"], a["w"]) and mixed["norm"][2] == a["norm"][2]


def test_16_bits_are_summed_in_float32() -> None:
    """Of three thirds of bfloat16 only one rounding is left."""
    sources = {name: tensors(seed, torch.bfloat16) for seed, name in enumerate("abc")}
    mixed = Mixture(sources, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    for name in NAMES:
        exact = torch.stack([each[name].double() for each in sources.values()]).mean(0)
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name].double(), exact, rtol=0, atol=1e-6)
        assert torch.equal(stored(mixed, name), mixed[name].bfloat16())
    wide = Mixture({"a": tensors(1), "b": sources["b"]}, {"a": 0.5, "b": 0.5})
    assert stored(wide, "w").dtype == torch.float32 and wide.layout()["w"] == (torch.float32, torch.Size([7, 3]))


def test_task_arithmetic() -> None:
    base, a, b = tensors(1), tensors(2), tensors(3)
    weights = coefficients({"a": 0.7, "b": 0.9}, "base", where="mix")
    assert weights == {"base": pytest.approx(-0.6), "a": 0.7, "b": 0.9}
    mixed = Mixture({"base": base, "a": a, "b": b}, weights)
    for name in NAMES:
        expected = base[name] + 0.7 * (a[name] - base[name]) + 0.9 * (b[name] - base[name])
        torch.testing.assert_close(mixed[name], expected, rtol=0, atol=1e-6)
    for added, expected in ({"a": 1.0, "b": 0.0}, a), ({"a": 0.0, "b": 0.0}, base):
        mixed = Mixture({"base": base, "a": a, "b": b}, coefficients(added, "base", where="mix"))
        assert all(torch.equal(mixed[name], expected[name]) for name in NAMES)
    # Weights that are 1 together leave nothing of the base, rounding of decimals included.
    assert sum((0.08, 0.57, 0.35)) != 1
    assert coefficients({"a": 0.08, "b": 0.57, "c": 0.35}, "base", where="mix")["base"] == 0


def test_wrong_weights_are_refused() -> None:
    for weights in ({"a": 0.5}, {"a": 0.7, "b": 0.7}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}):
        with pytest.raises(ValueError, match=r"mix: found the weights .*, expected weights from 0 to 1 that sum to 1"):
            coefficients(weights, where="mix")
    with pytest.raises(ValueError, match=r"mix: found the base 'a' among the sources \['a', 'b'\]"):
        coefficients({"a": 1.0, "b": 1.0}, "a", where="mix")
    with pytest.raises(ValueError, match="expected finite numbers"):
        coefficients({"a": float("nan")}, "base", where="mix")


def test_sources_that_differ_are_refused_by_name() -> None:
    a, b = tensors(1), tensors(2)
    half = {"a": 0.5, "b": 0.5}
    more = {**b, **{f"v{i}": b["w"] for i in range(3)}}
    del more["norm"]
    with pytest.raises(ValueError) as refused:
        Mixture({"a": a, "b": more}, half)
    assert str(refused.value) == (
        "'a' and 'b' differ in 4 tensors ('norm' is only in 'a', 'v0' is only in 'b', 'v1' is only in 'b' and 1 more),"
        " expected the same names where sources are mixed"
    )
    wide = {**b, "w": b["w"].t(), "norm": b["norm"][:4]}
    mixed = Mixture({"a": a, "b": wide}, half)
    with pytest.raises(ValueError, match=r"'w' has shape \(3, 7\) in 'b', expected \(7, 3\) as in 'a' \(2 such"):
        mixed.layout()
    with pytest.raises(ValueError, match=r"'norm' has shape \(4,\) in 'b', expected \(5,\) as in 'a'$"):
        _ = mixed["norm"]
    # A source without a weight must fit too.
    with pytest.raises(ValueError, match="'w' has shape"):
        Mixture({"a": a, "b": wide}, {"a": 1.0, "b": 0.0}).layout()


def test_whole_numbers_are_kept_where_they_agree() -> None:
    count = {"n": torch.tensor([3, 4])}
    mixed = Mixture({"a": count, "b": {"n": torch.tensor([3, 4])}}, {"a": 0.5, "b": 0.5})
    assert same(mixed["n"], count["n"]) and mixed.layout()["n"][0] == torch.int64
    with pytest.raises(ValueError, match="'n' holds whole numbers that differ in 'a' and 'b'"):
        _ = Mixture({"a": count, "b": {"n": torch.tensor([3, 5])}}, {"a": 0.5, "b": 0.5})["n"]


class Counted(Mapping[str, Tensor]):
    """Gives new tensors, and knows how many of them are still there."""

    def __init__(self, inner: Mapping[str, Tensor]) -> None:
        self.inner = inner
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0
        self.reads: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.inner[name].clone()
        gc.collect()
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        self.reads.append(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


@pytest.fixture
def few_objects() -> Iterator[None]:
    """What the suite has made until now is not looked through by each collection."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("piece", [2**20, 4])
def test_of_every_source_one_tensor_is_open_and_of_the_sum_one_piece(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_objects: None
) -> None:
    monkeypatch.setattr(mixing, "PIECE", piece)
    sources = {name: Counted(tensors(seed, torch.bfloat16)) for seed, name in enumerate("abc")}
    mixed = Mixture(sources, {"a": 0.5, "b": 0.5, "c": 0.0})
    layout = mixed.layout()
    for each in sources.values():
        assert (each.most, sorted(each.reads)) == (1, sorted(NAMES))
        each.reads.clear()
    pieces: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def read(name: str) -> Iterator[Tensor]:
        nonlocal most
        for each in mixed.pieces(name):
            gc.collect()
            pieces.add(each)
            most = max(most, len(pieces))
            assert each.numel() <= piece and all(len(source.alive) <= 1 for source in sources.values())
            yield each

    shards = write_in_pieces(tmp_path / "model.safetensors", layout, read, shard_bytes=30)
    assert len(shards) == 2
    # The piece before is let go when the next one is there.
    assert most <= 2 and [each.most for each in sources.values()] == [1, 1, 1]
    assert set(sources["b"].reads) == set(NAMES) and sources["c"].reads == []
    found = TensorFiles(tmp_path)
    assert all(same(found[name].view(-1), stored(mixed, name).view(-1)) for name in NAMES)


def test_layouts_are_those_of_files_and_read_nothing_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate("ab"):
        write_tensors(tmp_path / name / "model.safetensors", tensors(seed, torch.float16))
    mixed = Mixture({name: TensorFiles(tmp_path / name) for name in "ab"}, {"a": 0.5, "b": 0.5})
    assert mixed.layout() == {n: (t.dtype, t.shape) for n, t in sorted(tensors(0, torch.float16).items())}
    assert list(mixed) == sorted(NAMES) and len(mixed) == 3

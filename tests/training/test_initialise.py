from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.training.initialise import Provenance, build_empty, initialise, materialise, summary
from lightning_mllm.weights.stage_weights import InitialTensors


class Net(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.register_buffer("angles", torch.arange(3.0), persistent=False)
        self.tied = tied
        if tied:
            self.tie_weights()

    def tie_weights(self) -> None:
        if self.tied:
            self.second.weight = self.first.weight


@dataclass(frozen=True, kw_only=True)
class Spec:
    source: tuple[tuple[str, float], ...] | None = None
    tied: bool = False

    def build(self) -> nn.Module:
        return Net(self.tied)

    def pretrained(self) -> Iterable[tuple[str, Tensor]] | None:
        if self.source is None:
            return None
        shapes = {name: tensor.shape for name, tensor in Net().state_dict().items()}
        return ((name, torch.full(shapes.get(name, torch.Size([1])), value)) for name, value in self.source)

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []


@dataclass(frozen=True, kw_only=True)
class Stretched(Spec):
    """Its bias may start from one number."""

    def resized(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
        return tensor.expand(shape) if name == "first.bias" and tensor.shape == (1,) else None


@dataclass(frozen=True, kw_only=True)
class Half(Spec):
    """Its source need not hold the first layer's bias."""

    fresh: Sequence[str] = ("*.bias",)


ALL = (("first.weight", 1.0), ("first.bias", 2.0), ("second.weight", 3.0))


def made(
    ancestors: dict[str, Tensor] | None = None, keys_to_ignore_on_load: tuple[str, ...] = (), **specs: Spec
) -> tuple[Any, Provenance]:
    module = nn.ModuleDict({name: build_empty(spec) for name, spec in specs.items()})
    assert all(parameter.is_meta for parameter in module.parameters())
    materialise(module, torch.device("cpu"))
    inherited = InitialTensors({name: lambda tensor=tensor: tensor for name, tensor in (ancestors or {}).items()}, {})
    return module, initialise(module, specs, inherited, keys_to_ignore_on_load)


def test_an_ancestor_goes_before_a_pretrained_source_before_a_fresh_start() -> None:
    module, seen = made({"a.first.bias": torch.full((3,), 9.0)}, a=Spec(source=ALL), b=Spec())
    assert module["a"].first.bias.tolist() == [9.0] * 3
    assert module["a"].second.weight.flatten().tolist() == [3.0] * 9
    assert module["a"].angles.tolist() == [0.0, 1.0, 2.0]
    assert summary(seen) == {"a": {"stage.init_from": 1, "pretrained": 2}, "b": {"fresh": 3}}


def test_fresh_values_depend_on_the_seed_and_the_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    torch.manual_seed(5)
    first, _ = made(a=Spec(), b=Spec())
    state = torch.get_rng_state()
    second, _ = made(b=Spec())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["b"].first.weight, second["b"].first.weight)
    assert not torch.equal(first["a"].first.weight, first["b"].first.weight)
    assert first["a"].first.weight.std() > 0.1
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    third, _ = made(b=Spec())
    assert not torch.equal(second["b"].first.weight, third["b"].first.weight)


def test_a_parameter_that_nobody_initialises_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.first\.bias: found no initial value .* in 'a'"):
        made(a=Spec(source=(ALL[0], ALL[2])))


def test_a_tensor_that_the_net_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pretrained: tensor 'a\.frist\.bias' is not in the net, .*'a\.first\.bias'"):
        made(a=Spec(source=(*ALL, ("frist.bias", 1.0))))
    with pytest.raises(ValueError, match=r"stage\.init_from: tensor 'c\.weight' is not in the net"):
        made({"c.weight": torch.zeros(1)}, a=Spec(source=ALL))


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a\.first\.bias' has shape \(4,\), expected \(3,\)"):
        made({"a.first.bias": torch.zeros(4)}, a=Spec(source=ALL))


def test_a_value_that_is_no_number_is_refused() -> None:
    for source in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"stage\.init_from: tensor 'a\.first\.bias' \(1 such tensors\) holds NaN"):
            made({"a.first.bias": torch.tensor([0.0, source, 0.0])}, a=Spec(source=ALL))
        with pytest.raises(ValueError, match=r"pretrained: tensor 'a\.second\.weight' .* holds NaN or infinity"):
            made(a=Spec(source=(*ALL[:2], ("second.weight", source))))


def test_a_part_that_can_resizes_what_it_inherits() -> None:
    one = {"a.first.bias": torch.ones(1)}
    module, seen = made(one, a=Stretched(source=ALL))
    assert module["a"].first.bias.tolist() == [1.0] * 3
    # The pretrained bias, which comes later, does not replace it.
    assert summary(seen) == {"a": {"stage.init_from, resized": 1, "pretrained": 2}}
    with pytest.raises(ValueError, match=r"'a\.first\.bias' has shape \(1,\), expected \(3,\)"):
        made(one, a=Spec(source=ALL))
    with pytest.raises(ValueError, match=r"'a\.first\.bias' has shape \(4,\), expected \(3,\)"):
        made({"a.first.bias": torch.ones(4)}, a=Stretched(source=ALL))


def test_a_fresh_pattern_names_some_tensor() -> None:
    with pytest.raises(ValueError, match=r"a, fresh: '\*\.bais' matches no tensor, .*'first\.bias'"):
        made(a=Half(source=ALL, fresh=("*.bais",)))


def test_what_a_source_lacks_may_be_declared_fresh() -> None:
    module, seen = made(a=Half(source=(ALL[0], ALL[2])))
    assert summary(seen) == {"a": {"pretrained": 2, "fresh": 1}}
    assert module["a"].first.weight.flatten().tolist() == [1.0] * 9
    # The value is that of the part had it been fresh altogether.
    assert torch.equal(module["a"].first.bias, made(a=Spec())[0]["a"].first.bias)
    # What the source has, or an ancestor, goes before.
    assert made(a=Half(source=ALL))[0]["a"].first.bias.tolist() == [2.0] * 3
    module, seen = made({"a.first.bias": torch.full((3,), 9.0)}, a=Half(source=(ALL[0], ALL[2])))
    assert module["a"].first.bias.tolist() == [9.0] * 3
    assert seen["a.first.bias"] == "stage.init_from"
    with pytest.raises(ValueError, match=r"a\.second\.weight: found no initial value \(1 such parameters in 'a'\)"):
        made(a=Half(source=ALL[:2]))


def test_what_a_net_discards_of_an_ancestor() -> None:
    left = {"a.old.weight": torch.zeros(7), "b.weight": torch.zeros(7), "a.first.bias": torch.full((3,), 9.0)}
    module, seen = made(left, keys_to_ignore_on_load=("a.old.*", "b.*", "a.first.*"), a=Spec(source=ALL))
    assert seen.keys() == {"a.first.weight", "a.first.bias", "a.second.weight"}
    # What the net has is taken though a pattern matches it.
    assert module["a"].first.bias.tolist() == [9.0] * 3
    with pytest.raises(ValueError, match=r"'b\.weight' is not in the net"):
        made(left, keys_to_ignore_on_load=("a.*",), a=Spec(source=ALL))


def test_tied_parameters_stay_one() -> None:
    module, seen = made(a=Spec(tied=True))
    assert module["a"].second.weight is module["a"].first.weight
    assert set(seen) == {"a.first.weight", "a.first.bias"}
    module, _ = made(a=Spec(tied=True, source=ALL[:2]))
    assert module["a"].second.weight.flatten().tolist() == [1.0] * 9

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from lightning_mllm.contracts import ParamGroup
from lightning_mllm.training.freezing import (
    GradientCheck,
    freeze,
    freeze_table,
    frozen_modules,
    match,
    print_freeze_table,
)

NAMES = ["vision.weight", "connector.linear_1.weight", "connector.linear_1.bias", "language.q.lora_A.default.weight"]


def net() -> Any:
    return nn.ModuleDict(
        {
            "vision": nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
            "connector": nn.Linear(2, 2),
            "language": nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 1, bias=False)}),
        }
    )


def test_patterns_name_parameters() -> None:
    found = match(NAMES, {"connector.*": ParamGroup(), "language.*lora_*": ParamGroup(lr=1.0)})
    assert found == {NAMES[1]: "connector.*", NAMES[2]: "connector.*", NAMES[3]: "language.*lora_*"}


def test_a_pattern_may_leave_names_to_another() -> None:
    table = {"connector.*": ParamGroup(exclude=("*.bias",)), "*.bias": ParamGroup()}
    assert match(NAMES, table) == {NAMES[1]: "connector.*", NAMES[2]: "*.bias"}


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pattern 'conector\.\*' matches no parameter, .*'connector\.linear_1\.bias'"):
        match(NAMES, {"conector.*": ParamGroup()})


@pytest.mark.parametrize("out", ["*.bais", "language.*"])
def test_what_a_pattern_leaves_out_is_some_of_it(out: str) -> None:
    with pytest.raises(
        ValueError, match=rf"'{re.escape(out)}', which pattern 'connector\.\*' leaves out, .*'connector\.linear_1\.\w+'"
    ):
        match(NAMES, {"connector.*": ParamGroup(exclude=(out,))})


def tied() -> Any:
    module = nn.ModuleDict({"embed": nn.Embedding(4, 2), "body": nn.Linear(2, 2), "head": nn.Linear(2, 4, bias=False)})
    module["head"].weight = module["embed"].weight  # pyright: ignore[reportAttributeAccessIssue]
    return nn.ModuleDict({"language": module})


@pytest.mark.parametrize(
    ("table", "first", "second"),
    [
        ({"language.*": ParamGroup(exclude=("*.head.*",))}, "embed", "head"),
        ({"language.*": ParamGroup(exclude=("*.embed.*",))}, "head", "embed"),
        ({"language.head.*": ParamGroup()}, "head", "embed"),
    ],
)
def test_a_tied_parameter_is_trained_under_all_of_its_names_or_none(
    table: dict[str, ParamGroup], first: str, second: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"'language\.{first}\.weight' and 'language\.{second}\.weight' are one tied parameter"
    ):
        freeze(tied(), table)


def test_a_tied_parameter_has_one_name() -> None:
    names = {"language.body.weight", "language.body.bias"}
    assert set(freeze(tied(), {"language.*": ParamGroup()})) == {*names, "language.embed.weight"}
    assert set(freeze(tied(), {"language.*": ParamGroup(exclude=("*.head.*", "*.embed.*"))})) == names


def test_an_idle_name_is_one_of_the_net() -> None:
    with pytest.raises(ValueError, match=r"unused_parameters: 'conector\.bias' is no parameter .*'connector\.bias'"):
        GradientCheck(net(), {"conector.bias"})


def test_a_parameter_matched_twice_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'connector\.linear_1\.bias' is matched by both 'connector\.\*' and '\*\.bias'"
    ):
        match(NAMES, {"connector.*": ParamGroup(), "*.bias": ParamGroup()})


def test_freezing_and_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    module, table = (
        net(),
        {"connector.*": ParamGroup(lr=0.5), "language.second.*": ParamGroup(lr_scale=0.1, weight_decay=0.1)},
    )
    trained = freeze(module, table)
    assert {n for n, p in module.named_parameters() if p.requires_grad} == set(trained)
    assert frozen_modules(module) == [module["vision"], module["language"]["first"]]

    rows = freeze_table(module, trained, table, lr=1e-3, weight_decay=0.0)
    assert [(r.part, r.parameters, r.trained, r.lr, r.weight_decay, r.dtype) for r in rows] == [
        ("vision", 6, False, None, None, "float32"),
        ("connector", 6, True, 0.5, 0.0, "float32"),
        ("language", 6, False, None, None, "float32"),
        ("language", 2, True, pytest.approx(1e-4), 0.1, "float32"),
    ]
    print_freeze_table(rows, title="a net")
    assert "connector.*" in capsys.readouterr().out


def check(module: nn.Module, **gradients: float) -> GradientCheck:
    for name, parameter in module.named_parameters():
        value = next((v for k, v in gradients.items() if name.startswith(k)), None)
        parameter.grad = None if value is None else torch.full_like(parameter, value)
    return GradientCheck(module)


def test_gradients_after_the_first_step() -> None:
    module = net()
    freeze(module, {"connector.*": ParamGroup(), "language.*": ParamGroup()})
    good = check(module, connector=1.0, language=1.0)
    good.look(saw_image=True, moves=True)
    assert good.done

    with pytest.raises(
        ValueError, match=r"connector\.bias, connector\.weight are trained, expected a non-zero gradient"
    ):
        check(module, connector=0.0, language=1.0).look(saw_image=True, moves=True)
    with pytest.raises(ValueError, match=r"language\.second\.weight .* expected a finite gradient"):
        check(module, connector=1.0, language=float("inf")).look(saw_image=True, moves=True)
    with pytest.raises(ValueError, match=r"vision\.0\.weight, vision\.0\.bias are frozen, expected no gradient"):
        check(module, connector=1.0, language=1.0, vision=0.0).look(saw_image=True, moves=True)


def test_without_an_image_the_visual_side_may_wait() -> None:
    module = net()
    freeze(module, {"connector.*": ParamGroup(), "language.*": ParamGroup()})
    found = check(module, connector=0.0, language=1.0)
    found.look(saw_image=False, moves=True)
    assert not found.done
    with pytest.raises(ValueError, match="connector"):
        found.look(saw_image=True, moves=True)


def test_what_no_loss_reaches_is_not_waited_for() -> None:
    module = net()
    freeze(module, {"connector.*": ParamGroup(), "language.*": ParamGroup()})
    silent = check(module, connector=1.0, language=0.0)
    unused_parameters = {name for name in silent.trained if name.startswith("language.")}
    found = GradientCheck(module, unused_parameters)
    found.look(saw_image=True, moves=True)
    assert found.done
    with pytest.raises(ValueError, match=r"language\.second\.weight is trained, expected a non-zero gradient"):
        GradientCheck(module, unused_parameters - {"language.second.weight"}).look(saw_image=True, moves=True)


def test_the_first_half_of_an_adapter_may_wait_until_something_moved() -> None:
    module = nn.ModuleDict({"q": nn.ModuleDict({"lora_A": nn.ModuleDict({"default": nn.Linear(2, 2, bias=False)})})})
    found = check(module, q=0.0)
    found.look(saw_image=True, moves=False)
    found.look(saw_image=True, moves=True)
    with pytest.raises(ValueError, match=r"q\.lora_A\.default\.weight is trained, expected a non-zero gradient"):
        found.look(saw_image=True, moves=True)

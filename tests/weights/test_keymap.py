"""Key maps: one table, both directions, nothing lost and nothing guessed."""

from __future__ import annotations

import pytest
import torch

from lightning_mllm.weights.keymap import SPLIT_3, KeyMap, Rule

TABLE = KeyMap(
    [
        ("blocks.{n}.attn.in_proj_{...}", ("layers.{n}.q.{...}", "layers.{n}.k.{...}", "layers.{n}.v.{...}"), SPLIT_3),
        ("blocks.{n}.mlp.{m}.{...}", "layers.{n}.fc{m}.{...}"),
        ("kernel", "kernel.turned", (torch.t, torch.t)),
        ("{...}", "plain.{...}"),
    ]
)


def ours() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    names = ["blocks.0.mlp.1.weight", "blocks.12.mlp.2.bias", "norm.weight"]
    tensors = {name: torch.randn(3) for name in names}
    tensors |= {"kernel": torch.randn(2, 3), "blocks.0.attn.in_proj_weight": torch.randn(6, 2)}
    return tensors | {"blocks.0.attn.in_proj_bias": torch.randn(6)}


def test_there_and_back_is_exact() -> None:
    theirs = dict(TABLE.to_theirs(ours().items()))
    assert sorted(theirs) == [
        "kernel.turned",
        "layers.0.fc1.weight",
        "layers.0.k.bias",
        "layers.0.k.weight",
        "layers.0.q.bias",
        "layers.0.q.weight",
        "layers.0.v.bias",
        "layers.0.v.weight",
        "layers.12.fc2.bias",
        "plain.norm.weight",
    ]
    assert torch.equal(theirs["layers.0.k.weight"], ours()["blocks.0.attn.in_proj_weight"][2:4])
    for order in (list(theirs.items()), list(theirs.items())[::-1]):
        back = dict(TABLE.to_ours(order))
        assert back.keys() == ours().keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in ours().items())
    lazy = TABLE.lazily(theirs)
    assert lazy.keys() == ours().keys()
    assert all(torch.equal(lazy[name](), tensor) for name, tensor in ours().items())


def test_theirs_may_be_the_fused_one() -> None:
    parts = tuple(f"h.{{n}}.{each}.{{...}}" for each in "qkv")
    table = KeyMap([(parts, "layers.{n}.qkv.{...}", SPLIT_3), ("{...}", "plain.{...}")]).under("a.", "b.")
    named = {f"a.h.3.{each}.weight": torch.randn(2, 5) for each in "kvq"} | {"a.x": torch.ones(1)}
    theirs = dict(table.to_theirs(named.items()))
    assert list(theirs) == ["b.layers.3.qkv.weight", "b.plain.x"]
    expected = torch.cat([named[f"a.h.3.{each}.weight"] for each in "qkv"])
    assert torch.equal(theirs["b.layers.3.qkv.weight"], expected)
    for back in (dict(table.to_ours(theirs)), {name: load() for name, load in table.lazily(theirs).items()}):
        assert back.keys() == named.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in named.items())
    del named["a.h.3.k.weight"]
    with pytest.raises(ValueError, match=r"'b\.layers\.3\.qkv\.weight' is made of 3 tensors, found 2"):
        list(table.to_theirs(named.items()))


def test_an_unknown_name_is_an_error_that_names_it() -> None:
    table = KeyMap(TABLE.rules[:-1])
    with pytest.raises(ValueError, match=r"'norm.weight' has no name in the other layout, expected one of 'blocks"):
        list(table.to_theirs([("norm.weight", torch.ones(1))]))
    for name in ("layers.x.fc1.weight", "layers.1.fc.weight", "xlayers.1.fc1.weight", "layers.1.fc1."):
        with pytest.raises(ValueError, match=f"'{name}' has no name here"):
            list(table.to_ours([(name, torch.ones(1))]))
    with pytest.raises(ValueError, match="layersX0"):
        list(table.to_ours([("layersX0.fc1.weight", torch.ones(1))]))


def test_a_missing_part_is_an_error() -> None:
    part = {"layers.3.q.bias": torch.ones(1), "layers.3.v.bias": torch.ones(1)}
    with pytest.raises(ValueError, match=r"'blocks.3.attn.in_proj_bias' is made of 3 tensors, found 2"):
        list(TABLE.to_ours(part))
    with pytest.raises(ValueError, match=r"'blocks.3.attn.in_proj_bias' is made of 3 tensors, found only"):
        TABLE.lazily(part)


def test_prefixes_sums_and_other_names() -> None:
    table = KeyMap(
        KeyMap([("{n}.{...}", "l{n}.{...}")]).under("vision.", "tower.").rules,
        [("old.{...}", "tower.{...}")],
    ) + KeyMap([("head", "lm_head")])
    assert [name for name, _ in table.to_theirs([("vision.3.a.b", torch.ones(1)), ("head", torch.ones(1))])] == [
        "tower.l3.a.b",
        "lm_head",
    ]
    assert [name for name, _ in table.to_ours([("old.l3.a.b", torch.ones(1))])] == ["vision.3.a.b"]


def test_a_line_may_depend_on_the_configuration_and_leave_tensors_out() -> None:
    table = KeyMap(
        [
            Rule(ours=None, theirs=("l.{n}",), when=lambda config, found: int(found["n"]) >= config["used"]),
            ("l.{n}", "l.{n}"),
        ]
    )
    tensors = {f"l.{n}": torch.ones(1) for n in range(3)}
    assert list(table.lazily(tensors, {"used": 2})) == ["l.0", "l.1"]
    assert [name for name, _ in table.to_ours(tensors, {"used": 3})] == ["l.0", "l.1", "l.2"]
    assert [name for name, _ in table.to_theirs(tensors.items())] == ["l.0", "l.1", "l.2"]

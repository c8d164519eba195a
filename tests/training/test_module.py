from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import Callback

from lightning_mllm.contracts import ParamGroup
from tests.toy import Toy, ToyLanguage, ToyProcessor
from tests.training.data import ToyData
from tests.training.runs import fit, losses, settings, trainer, weights


@pytest.fixture
def used_gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The gradients that each optimizer step is given."""
    seen: list[dict[str, torch.Tensor]] = []
    clip = Toy.configure_gradient_clipping

    def look(self, *arguments, **named):
        clip(self, *arguments, **named)
        seen.append({name: p.grad.clone() for name, p in self.net.named_parameters() if p.grad is not None})

    monkeypatch.setattr(Toy, "configure_gradient_clipping", look)
    return seen


def test_a_stage_learns_and_the_next_stage_starts_from_it(tmp_path: Path) -> None:
    data = {"steps": 100, "samples": 16, "global_batch": 8, "micro_batch": 8}
    align = fit(tmp_path / "align", stage=settings("align", global_batch=8), data={**data, "steps": 20})
    stage = settings("instruct", init_from={"align": 1.0}, global_batch=8, lr=2e-2)
    instruct = fit(tmp_path / "instruct", stage=stage, data=data, runs=str(tmp_path))

    curve = [loss for _, loss in losses(tmp_path / "instruct")]
    assert curve[-1] < 0.3 * curve[0]
    assert set(align.provenance.values()) == {"pretrained", "fresh"}
    assert instruct.provenance["connector.weight"] == "stage.init_from"
    assert set(weights(align)) == {"connector.weight", "connector.bias"}

    after = Toy(stage=settings("instruct", train={}, init_from={"instruct": 1.0}), runs=str(tmp_path))
    after.configure_model()
    for name, tensor in weights(instruct).items():
        torch.testing.assert_close(after.state_dict()[name], tensor, rtol=0, atol=0)
    own = trainer(tmp_path / "instruct", logger=False, callbacks=[])
    scores = own.test(after, datamodule=ToyData(), verbose=False)[0]
    assert scores["test/exact_match"] == 1.0
    assert scores["test/exact_match_blind"] < 0.5
    assert (tmp_path / "instruct" / "test.json").is_file()
    rows = own.predict(after, datamodule=ToyData())
    assert rows is not None and rows[0][0] == {
        **{"task": "exact", "part": "", "id": "s0"},
        **{"prompt": "colour", "answer": "red"},
    }


def test_a_net_may_have_no_place_for_what_an_ancestor_trained(tmp_path: Path) -> None:
    class Shorter(Toy):
        keys_to_ignore_on_load = ("language.blocks.*",)

    before = fit(tmp_path / "instruct", data={"steps": 2})
    stage = settings("align", init_from={"instruct": 1.0})
    after = Shorter(language=ToyLanguage(depth=1), stage=stage, runs=str(tmp_path))
    after.configure_model()
    kept = {name: tensor for name, tensor in weights(before).items() if not name.startswith("language.blocks.1.")}
    assert {name for name, source in after.provenance.items() if source == "stage.init_from"} == set(kept)
    assert "language.blocks.0.up.weight" in kept
    for name, tensor in kept.items():
        assert torch.equal(after.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match=r"stage\.init_from: tensor 'language\.blocks\.1\."):
        Toy(language=ToyLanguage(depth=1), stage=stage, runs=str(tmp_path)).configure_model()


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_the_gradient_is_that_of_the_whole_global_batch(
    tmp_path: Path, micro: int, used_gradients: list[dict[str, torch.Tensor]]
) -> None:
    """Answers differ in length, so a mean of means would be another gradient."""
    fit(tmp_path, data={"steps": 1, "micro_batch": micro}, every_n_steps=0)
    seen = used_gradients[0]
    module = Toy(stage=settings())
    module.configure_model()
    batch = next(iter(ToyData().train_dataloader()))
    output = module(batch)
    output.loss.backward()
    for name, parameter in module.net.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-5, atol=1e-7)
    assert losses(tmp_path)[0][1] == pytest.approx(output.loss.item(), rel=1e-6)
    assert losses(tmp_path, "train/half")[0][1] == pytest.approx(output.loss.item() / 2, rel=1e-6)


def test_clipping_is_of_the_global_gradient(tmp_path: Path, used_gradients: list[dict[str, torch.Tensor]]) -> None:
    fit(tmp_path, data={"steps": 2, "micro_batch": 2}, stage=settings(gradient_clip=0.05))
    assert [float(torch.nn.utils.get_total_norm(list(g.values()))) for g in used_gradients] == pytest.approx([0.05] * 2)
    assert losses(tmp_path, "train/gradient_norm")[0][1] > 0.05


@pytest.mark.parametrize("share", [0.5, 0.98, 1.0, 1.02])
def test_a_gradient_is_clipped_by_its_ratio_alone(
    tmp_path: Path, used_gradients: list[dict[str, torch.Tensor]], share: float
) -> None:
    data = {"steps": 1, "micro_batch": 4}
    fit(tmp_path / "whole", data=data, every_n_steps=0)
    norm = torch.nn.utils.get_total_norm(list(used_gradients[0].values()))
    clip = float(norm) / share
    fit(tmp_path / "clipped", data=data, every_n_steps=0, stage=settings(gradient_clip=clip))
    ratio = (clip / (norm + 1e-6)).clamp(max=1.0)
    whole, clipped = used_gradients
    assert all(torch.equal(clipped[name], ratio * whole[name]) for name in whole)


def test_clipping_by_the_trainer_is_refused_before_the_net_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "configure_model", lambda self: pytest.fail("the net is built"))
    with pytest.raises(ValueError, match=r"trainer\.gradient_clip_val: found 1\.0, expected .* stage\.gradient_clip"):
        fit(tmp_path, data={"steps": 1}, gradient_clip_val=1.0)


def test_frozen_parts_stay_in_eval_mode_and_unchanged(tmp_path: Path) -> None:
    module = fit(tmp_path, stage=settings("align"), dropout=0.5, data={"steps": 2})
    fresh = Toy(stage=settings("align"))
    fresh.configure_model()
    assert module.net.connector.training and not module.net.vision.training
    assert not any(child.training for child in module.net.language.modules())
    for name, parameter in module.net.named_parameters():
        same = torch.equal(parameter, fresh.net.get_parameter(name))
        assert same != name.startswith("connector."), name


def test_optimizer_groups_follow_the_table_and_spare_biases(tmp_path: Path) -> None:
    table = {"connector.*": ParamGroup(lr=1e-4, weight_decay=0.5), "language.head.*": ParamGroup()}
    groups = {}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            for group in trainer.optimizers[0].param_groups:
                groups[group["name"]] = (group["initial_lr"], group["weight_decay"], len(group["params"]))

    fit(tmp_path, stage=settings("own", train=table), data={"steps": 1}, callbacks=[Look()])
    assert groups == {
        "connector.*": (1e-4, 0.5, 1),
        "connector.* (not decayed)": (1e-4, 0.0, 1),
        "language.head.*": (5e-3, 0.1, 1),
        "language.head.* (not decayed)": (5e-3, 0.0, 1),
    }


def test_data_that_take_other_steps_than_the_stage_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, stage=settings(steps=2), data={"steps": 2})
    with pytest.raises(ValueError, match=r"stage.steps: found 3, expected the 2 of ToyData"):
        fit(tmp_path / "other", stage=settings(steps=3), data={"steps": 2})


def test_wrong_stages_are_refused_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match=r"found 'alingn'.*nearest is \['align'\]"):
        Toy(stage=settings("alingn"))
    from lightning_mllm.language.lora import Lora

    with pytest.raises(ValueError, match="trains no adapters"):
        Toy(stage=settings("align", lora=Lora()))


def test_a_global_batch_without_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = ToyProcessor.encode

    def unlearned(self, sample, **settings):
        encoded = encode(self, sample, **settings)
        encoded.labels.fill_(-100)
        return encoded

    monkeypatch.setattr(ToyProcessor, "encode", unlearned)
    with pytest.raises(ValueError, match="optimizer step 1: found no supervised item"):
        fit(tmp_path, data={"steps": 2})


def test_without_a_trainer_the_net_answers(tmp_path: Path) -> None:
    module = Toy()
    module.configure_model()
    module.configure_model()
    module.eval()
    batch = next(iter(ToyData().test_dataloader()[0]))
    assert len(module.answers(batch)) == 3
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("name", ["clip.ClipPretraining", "blip2_representation.Blip2Representation"])
def test_nets_that_compare_samples_are_not_packed(name: str) -> None:
    module, _, cls = name.partition(".")
    net = getattr(import_module(f"lightning_mllm.architectures.{module}"), cls).tiny()
    net.trainer = cast(Any, SimpleNamespace(precision="32-true", strategy=None, gradient_clip_val=None))
    net.trainer.datamodule = SimpleNamespace(packing=object())
    with pytest.raises(ValueError, match=r"hardware.pack: found true, expected false .* compares the samples"):
        net.setup("fit")

"""BLIP-2 and InstructBLIP on two ranks: the losses, gradients and final weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import lightning_mllm.nets.blip2_representation as stage_one
from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.contracts import Batch
from lightning_mllm.language.seq2seq import TINY_T5
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.stage import StageSettings
from tests.architectures.blip2s import INSTRUCTED, OPT, built, collated
from tests.architectures.test_blip2_representation import SHARED
from tests.distributed.ranks import on_two_ranks
from tests.distributed.stages import BUSY, Alone, same_as_alone
from tests.distributed.test_two_ranks import OF_LINEAGES, STRATEGIES
from tests.training.runs import fit, losses, settings, weights

SIX = SHARED
"""Two of its images have two texts each, which two ranks hold."""


def hardest(similarity: Tensor, own: Tensor) -> Tensor:
    """Negatives without chance."""
    return similarity.masked_fill(own, -torch.inf).argmax(1)


def stage_one_of(module: Any, batch: Batch, term: str) -> dict[str, Tensor]:
    """A loss, and the gradients of its mean over ranks."""
    module.zero_grad()
    pairs = module.net.pairs(batch)
    seen, known = module.net.qformer.encode_images_with_cache(pairs.visual)
    given = (*module.net.similarities(pairs, seen), pairs)
    loss = (module.net.contrast(*given) if term == "contrast" else module.net.matching(*given, known)).mean()
    loss.backward()
    world = dist.get_world_size() if dist.is_initialized() else 1
    found = {"loss": loss.detach().clone()}
    for name, parameter in module.net.named_parameters():
        if world > 1 or parameter.grad is not None:
            found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    if world > 1:
        for tensor in found.values():
            dist.all_reduce(tensor)
            tensor /= world
    return found


@pytest.mark.parametrize("soft", [False, True])
def test_contrast_and_matching_of_two_ranks_are_those_of_the_joint_batch(
    monkeypatch: pytest.MonkeyPatch, soft: bool
) -> None:
    """Other ranks' images and texts are among the wrong ones, and where an image is looked at its norm learns."""
    monkeypatch.setattr(stage_one, "hard_negatives", hardest)
    module = built(Blip2Representation, soft_targets=soft)
    joint = {term: stage_one_of(module, collated(module, *SIX), term) for term in ("contrast", "matching")}
    assert all((each["ln_vision.weight"] != 0).any() for each in joint.values())

    def work(rank: int) -> dict[str, dict[str, Tensor]]:
        dist.init_process_group("gloo")
        batch = collated(module, *SIX[3 * rank : 3 * rank + 3])
        return {term: stage_one_of(module, batch, term) for term in joint}

    first, second = on_two_ranks(work)
    for term, expected in joint.items():
        for name, tensor in expected.items():
            torch.testing.assert_close(first[term][name], tensor, rtol=0, atol=1e-6, msg=f"{term}: {name}")
            assert torch.equal(first[term][name], second[term][name])


def test_negatives_of_its_own_rank_are_those_of_each_half_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_one, "hard_negatives", hardest)
    module = built(Blip2Representation, negatives="rank")
    halves = [collated(module, *SIX[:3]), collated(module, *SIX[3:])]
    alone = [stage_one_of(module, half, "matching") for half in halves]

    def work(rank: int) -> dict[str, Tensor]:
        dist.init_process_group("gloo")
        return stage_one_of(module, halves[rank], "matching")

    first, _ = on_two_ranks(work)
    for name in alone[0]:
        mean = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(first[name], mean, rtol=0, atol=1e-6, msg=name)


CASES: dict[str, dict[str, Any]] = {
    "blip2, opt": {"build": lambda stage: Blip2.tiny(language=OPT, stage=stage)},
    "blip2, flan-t5": {"build": lambda stage: Blip2.tiny(language=TINY_T5, chat="blip2_t5", stage=stage)},
    "instructblip": {"build": lambda stage: Blip2.tiny(**INSTRUCTED, stage=stage)},
    "instructblip, one text-only rank": {
        "build": lambda stage: Blip2.tiny(**INSTRUCTED, stage=stage),
        "half_text": True,
    },
    "blip2, one text-only rank": {"build": lambda stage: Blip2.tiny(language=OPT, stage=stage), "half_text": True},
}


def run(folder: Path, case: str, *, ranks: int = 1, strategy: str = "") -> Any:
    given = CASES[case]
    data = {"steps": 2, "micro_batch": 4 // ranks, "half_text": given.get("half_text", False)}
    chosen, plan = (STRATEGIES[strategy](), BUSY[strategy]) if ranks > 1 else ("auto", ParallelPlan())
    stage = settings("generative" if case.startswith("blip2") else "instruct", lr=1e-3, eps=1e-6)
    own = {"build": given["build"], "parallel": plan, "devices": ranks, "strategy": chosen}
    return fit(folder / case, stage=stage, data=data, **own)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    return {case: (weights(run(folder, case)), losses(folder / case)) for case in CASES}


@pytest.mark.parametrize("strategy", OF_LINEAGES)
def test_two_ranks_equal_one_process(strategy: str, alone: Alone, tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Any]:
        return {case: weights(run(tmp_path, case, ranks=2, strategy=strategy)) for case in CASES}

    first, _ = on_two_ranks(work)
    same_as_alone(first, alone, tmp_path)


@pytest.mark.parametrize("strategy", OF_LINEAGES)
def test_the_first_stage_learns_on_two_ranks(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contrast is that of one process with the joint batch; whoever holds the parameters."""
    monkeypatch.setattr(stage_one, "hard_negatives", hardest)

    def first_stage(folder: Path, **more: Any) -> Any:
        stage = StageSettings(name="representation", lr=1e-3, global_batch=4, eps=1e-6)
        data = {"steps": 2, "micro_batch": 4 // more.get("devices", 1)}
        return fit(folder, stage=stage, data=data, build=lambda s: Blip2Representation.tiny(stage=s), **more)

    def work(rank: int) -> dict[str, Tensor]:
        own = {"strategy": STRATEGIES[strategy](), "parallel": BUSY[strategy]}
        return weights(first_stage(tmp_path / "two", devices=2, **own))

    expected = weights(first_stage(tmp_path / "one"))
    first, _ = on_two_ranks(work)
    assert set(first) == set(expected) and all(tensor.isfinite().all() for tensor in first.values())
    for name in ("contrast", "matching"):
        one, two = (losses(tmp_path / folder, f"train/{name}") for folder in ("one", "two"))
        assert two[0][1] == pytest.approx(one[0][1], rel=1e-6), name

"""The memory that is told of a step is what a real step takes."""

from __future__ import annotations

import time
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.processing.full_rows import full_batch
from lightning_mllm.training.initialise import materialise
from lightning_mllm.training.memory import FloatsAreFake, Memory, MemoryTracker, step_memory
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.sharding import to_local
from lightning_mllm.training.stage import StageSettings
from tests.distributed.ranks import on_two_ranks

ROWS = 8


def net(stage: str = "instruct", **plan: Any) -> LLaVA:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    language = CausalLM(config={**(TINY_LLAMA.config or {}), **sizes})
    module = LLaVA.tiny(language=language, max_length=256, stage=StageSettings(name=stage))
    module.parallel = ParallelPlan(**plan)
    return module


def told(module: LLaVA, ranks: int = 2, accumulates: bool = False) -> Memory:
    batch = full_batch(module.processor, ROWS)
    return step_memory(module, batch, ranks=ranks, sharded=ranks > 1, accumulates=accumulates)[0]


def taken(module: LLaVA) -> int:
    """The allocator's peak in an optimizer step of a real training of two ranks, as a Trainer takes it.

    The least of several steps: gloo's own copies live longer in a step in which the other rank is late.
    """
    module.build(init_device_mesh("cpu", (2,), mesh_dim_names=("shard",)))
    # From here on, for it does not see that anything older is freed.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        materialise(module, torch.device("cpu"))
        for parameter in module.parameters():
            torch.nn.init.normal_(to_local(parameter).detach(), std=0.02)
        module.train()
        batch = full_batch(module.processor, ROWS)
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)
        begins = []
        for _ in range(5):
            begins.append(time.time_ns())
            module(batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    profiler: Any = found.profiler
    events = [each for each in profiler.kineto_results.events() if each.name() == "[memory]"]
    events.sort(key=lambda each: each.start_ns())
    now = list(zip(accumulate(each.nbytes() for each in events), (each.start_ns() for each in events), strict=True))
    # The first step makes the moments.
    return min(max(size for size, at in now if begin <= at < end) for begin, end in pairwise(begins[1:]))


def test_two_real_ranks_take_what_is_told() -> None:
    """Within 5 %; most of it are copies that gloo makes."""
    plans = [{"precision": "bf16", "language_checkpointing": how} for how in ("none", "selective", "full")]

    def work(rank: int) -> list[int]:
        dist.init_process_group("gloo")
        return [taken(net(**plan)) for plan in plans]

    real = [min(both) for both in zip(*on_two_ranks(work), strict=True)]
    expected = [told(net(**plan)).total for plan in plans]
    assert expected == [pytest.approx(each, rel=0.05) for each in real]
    assert expected[0] > 1.3 * expected[1] > 1.5 * expected[2]


def test_one_device_holds_everything() -> None:
    """In fp32, to the byte: parameters, gradients, two moments."""
    module = net()
    found = told(module, ranks=1)
    module.build(None)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert found.optimizer == 8 * trained
    assert found.parameters >= 4 * sum(p.numel() for p in module.parameters())
    # The second micro-batch meets the gradients of the first.
    assert told(net(), ranks=1, accumulates=True).gradients == 4 * trained > found.gradients


def test_frozen_parameters_have_no_moments() -> None:
    full, align = told(net(precision="bf16")), told(net("align", precision="bf16"))
    assert align.optimizer < full.optimizer / 10


def test_a_step_that_reduces_once_holds_gradients_whole() -> None:
    once, always = (told(net(precision="bf16", reduce_every=how), accumulates=True) for how in ("step", "micro_batch"))
    assert once.total > always.total


def test_several_ranks_must_be_sharded() -> None:
    module = net()
    with pytest.raises(ValueError, match=r"trainer.strategy: found none over 2 devices, expected ShardedStrategy"):
        step_memory(module, full_batch(module.processor, 1), ranks=2, sharded=False, accumulates=False)


def test_an_error_of_the_plan_is_told() -> None:
    with pytest.raises(ValueError, match=r"hardware.shard: found 3, expected a divisor of the 2 ranks"):
        told(net(shard=3))


def test_integers_are_real_where_floats_are_fake() -> None:
    mask = torch.tensor([True, False, True])
    with FloatsAreFake():
        numbers = torch.arange(3)[mask]
        assert numbers.tolist() == [0, 2]
        assert torch.rand(3, 4)[mask].shape == (2, 4)
        assert (torch.zeros(3) + numbers.sum()).shape == (3,)


def test_the_largest_moment_counts() -> None:
    tracker = MemoryTracker()
    with tracker:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second.to(torch.bfloat16)
        del second
    assert tracker.peak.total == 8000
    assert (tracker.now.total, third.nbytes) == (2000, 2000)

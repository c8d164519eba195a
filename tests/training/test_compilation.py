"""Compiled blocks compute what uncompiled ones do, in few graphs, whose number is told and bounded."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch.testing import assert_close

from lightning_mllm.training import compilation
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.callbacks.throughput import Throughput
from lightning_mllm.training.compilation import compiled, graphs_compiled
from lightning_mllm.training.parallelize import ParallelPlan
from tests.architectures.samples import ONE, OTHER, TWO, batch_of
from tests.training.runs import fit
from tests.training.test_parallelize import STAGES, built, learned

CHEAP = ("llava, instruct",)
DROPS = "llava, instruct_lora"
"""Dropout, whose numbers a compiled block draws in another order."""


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is traced is run by torch itself, but with MLLM_INDUCTOR set, where it is compiled in minutes; the checks of
    shapes, which tests alone have, are no part of it."""
    torch._dynamo.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    if "MLLM_INDUCTOR" not in os.environ:
        run: Callable[..., Any] = lambda graph, inputs: graph.forward  # noqa: E731
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=run))
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("stage", [s for s in STAGES if s in CHEAP or ("MLLM_FULL" in os.environ and s != DROPS)])
def test_losses_and_gradients_are_those_of_uncompiled_blocks(stage: str) -> None:
    plain, module = built(stage), built(stage, ParallelPlan(compile=True))
    others = (ONE, OTHER) if stage == "blip2, representation" else (TWO, OTHER, ONE)
    before = graphs_compiled()
    for samples in ((ONE, OTHER), others):
        batch = batch_of(plain, *samples)
        plain.zero_grad()
        module.zero_grad()
        (loss, gradients), found = learned(plain, batch), learned(module, batch)
        assert_close(found[0], loss, rtol=1e-5, atol=0)
        assert found[1].keys() == gradients.keys()
        for name, gradient in gradients.items():
            # Weights that are one unit in the last place off, or two threads, move those of BLIP-2's pairs by 3e-6.
            assert_close(found[1][name], gradient, rtol=0, atol=4e-6 + 1e-5 * float(gradient.abs().max()), msg=name)
    assert 0 < graphs_compiled() - before <= 32


def test_packed_rows_are_computed_again_by_the_attention_of_their_forward_pass() -> None:
    """Which is not compiled, so that the blocks' recomputation is no graph either."""
    stage, plan = CHEAP[0], ParallelPlan(compile=True, language_checkpointing="full")
    plain, module = built(stage), built(stage, plan)
    batch = plain.processor.collate([plain.processor.encode(each) for each in (ONE, OTHER)], packed=True)
    (loss, gradients), found = learned(plain, batch), learned(module, batch)
    assert_close(found[0], loss, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_more_graphs_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "MOST", 2)
    block = compiled(lambda x, kind: x + len(kind))
    for kind in ("a", "bb"):
        block(torch.ones(2), kind)
    with pytest.raises(ValueError, match=r"hardware\.compile: found more than 2 kinds of inputs of one block"):
        block(torch.ones(2), "ccc")


def test_the_row_of_a_step_tells_how_many(tmp_path: Path) -> None:
    fit(tmp_path, data={"steps": 5}, parallel=ParallelPlan(compile=True), callbacks=[Throughput()])
    rows = MetricsCsv(str(tmp_path / "metrics.csv")).rows()
    assert rows[5]["throughput/graphs_compiled"] >= 1
    assert rows[5]["throughput/tflops"] > 0, "what is compiled is not counted"

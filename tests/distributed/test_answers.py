"""Answers and rankings of a net that is spread over two ranks, which have different images, lengths and ends."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing import assert_close

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.language.generation import AnswerEnd, Decoding
from lightning_mllm.nets.encoded_images import EncodedImages
from lightning_mllm.training.parallelize import ParallelPlan, parallelize
from tests.architectures.samples import ONE, OTHER, TEXT, TWO, batch_of
from tests.distributed.ranks import on_two_ranks

RANKS = [(ONE, ONE, ONE, OTHER), (TEXT, TWO)]
"""The first shares a prefix, the other has none."""
CANDIDATES = [("A cube.", "No."), ("Yes, they are.", "No.")]
HOW = Decoding(max_new_tokens=12)


def built() -> Any:
    module = LLaVA.tiny()
    module.configure_model()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in module.net.language.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def found(module: Any, rank: int, end: AnswerEnd) -> tuple[list[list[int]], Any]:
    batch = batch_of(module, *RANKS[rank], generate=True)
    net, images = module.net, EncodedImages(0)
    with torch.no_grad():
        written = net.generate(batch, HOW, end, images)
        texts = [[CANDIDATES[rank][n]] * len(batch.ids) for n in range(2)]
        likelihoods = net.log_likelihoods(batch, [module.processor.with_answers(batch, each) for each in texts], images)
    return written, likelihoods


def test_two_ranks_answer_as_one() -> None:
    alone = built()
    # What the first row of the second rank says second, and others later or never.
    free = alone.net.generate(batch_of(alone, *RANKS[1], generate=True), HOW, AnswerEnd(tokens=(272,), pad=0))
    end = AnswerEnd(tokens=(free[0][1],), pad=0)

    def work(rank: int) -> tuple[list[list[int]], Any]:
        dist.init_process_group("gloo")
        module = built()
        blocks = {name: spec.blocks(getattr(module.net, name)) for name, spec in module.components.items()}
        parallelize(module.net, blocks, ParallelPlan(), init_device_mesh("cpu", (2,)), module.net.entries)
        return found(module, rank, end)

    expected = [found(alone, rank, end) for rank in range(2)]
    assert len({len(row) for written, _ in expected for row in written}) > 1, "some end earlier"
    for (written, likelihoods), (other, others) in zip(on_two_ranks(work), expected, strict=True):
        assert written == other
        assert_close(likelihoods, others, atol=1e-4, rtol=1e-5)

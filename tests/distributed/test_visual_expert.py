"""A language model with visual experts, cut over two ranks of which one has seen no image."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing import assert_close

from lightning_mllm.language.generation import AnswerEnd, Decoding, generate
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.processing.shared_positions import shared_positions
from lightning_mllm.training.parallelize import ParallelPlan, parallelize
from lightning_mllm.training.sharding import full_tensor
from tests.distributed.ranks import on_two_ranks
from tests.language.experts import kinds_of, run, segments_of, small
from tests.language.models import LLAMA

ROWS = ("TTTTTTTT", "TBIIIETT")
PROMPTS = ("...TTTTT", "TBIIIIET")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.language: Any = small()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(".vision." in name)

    def forward(self, embeds: Tensor, *rows: str) -> Tensor:
        return run(self.language, embeds, *rows).square().sum()

    def generate(self, embeds: Tensor, row: str, steps: int) -> list[list[int]]:
        kinds, segments = kinds_of(row), segments_of(row)
        positions, end = shared_positions(kinds, segments), AnswerEnd(tokens=(64,), pad=0)
        return [
            row
            for beams in (1, 2)
            for row in generate(
                self.language,
                embeds,
                segments > 0,
                Decoding(max_new_tokens=steps, num_beams=beams),
                end,
                positions=positions,
                kinds=kinds,
            )
        ]


def grads(net: nn.Module) -> dict[str, Tensor]:
    return {name: full_tensor(p.grad) for name, p in net.named_parameters() if p.grad is not None}


def test_two_ranks_are_one() -> None:
    embeds = torch.randn(2, 8, 32)

    def work(rank: int) -> tuple[dict[str, Tensor], list[list[int]]]:
        dist.init_process_group("gloo")
        net, mine = Net(), embeds[rank : rank + 1]
        blocks = VisualExpertLM(config=LLAMA).blocks(net.language)
        parallelize(net, {"language": blocks}, ParallelPlan(), init_device_mesh("cpu", (2,)), entries=["generate"])
        net(mine, ROWS[rank]).backward()
        # One rank is done long before the other.
        return grads(net), net.generate(mine, PROMPTS[rank], 2 + 4 * rank)

    alone = Net()
    (alone(embeds, *ROWS) / 2).backward()
    expected = grads(alone)
    assert all(".vision." in name for name in expected)
    for rank, (found, written) in enumerate(on_two_ranks(work)):
        assert written == alone.generate(embeds[rank : rank + 1], PROMPTS[rank], 2 + 4 * rank)
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)

"""Plain text beside images on two ranks: the losses and weights of one process, and no rank that waits for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.evaluation import EvaluationSet
from data_modules.loader import SampleOrder, Share
from data_modules.mixture_sampler import MixtureSampler
from data_modules.module import MultimodalDataModule
from data_modules.sources import TextLines
from data_modules.text import TextRows, TextShare
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.training.stage import StageSettings
from tests.data_modules.files import write
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_two_ranks import STRATEGIES
from tests.training.data import Squares
from tests.training.runs import fit, losses, settings, trainer, weights

STEPS = 50


def documents(folder: Path) -> TextLines:
    texts = [f"There are {k} cubes. " + "One of them is red. " * (k % 6) for k in range(40)]
    return TextLines(write(folder / "corpus.jsonl", [{"text": text} for text in texts]))


def tiny(stage: StageSettings | None = None) -> LLaVA:
    return LLaVA.tiny(stage=stage)


class Halves:
    """Of each global batch the first half has images, the second is text: with two ranks, one kind on each."""

    def __init__(self, images: MixtureSampler, text: TextRows, batch: int) -> None:
        self.images, self.text, self.batch = images, text, batch

    def at(self, position: int) -> Any:
        second = position % self.batch >= self.batch // 2
        return self.text.at(position) if second else self.images.at(position)

    def __len__(self) -> int:
        return len(self.images)


class HalfText(MultimodalDataModule):
    """A rank of text and a rank of images, throughout."""

    def shares(self) -> list[Share]:
        return [Share("stage.global_batch", self.global_batch, self.micro_batch)]

    def orders(self) -> list[SampleOrder]:
        assert self.rows is not None
        return [Halves(self.order, self.rows, self.global_batch)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_of_text_and_a_rank_of_images(strategy: str, tmp_path: Path) -> None:
    source = documents(tmp_path)

    def work(rank: int) -> list[int]:
        module = tiny(settings("instruct", lr=1e-3))
        data = HalfText(
            train={"squares": Squares(12)},
            text=TextShare(source=source, tokens=48, length=48),
            steps=STEPS,
            global_batch=2,
            micro_batch=1,
            processor=module.processor,
        )
        kinds: list[int] = []
        step = module.training_step

        def look(batch: Any, batch_idx: int) -> Any:
            kinds.append(batch.num_images)
            return step(batch, batch_idx)

        module.training_step = look
        own = trainer(tmp_path / strategy, every_n_steps=0, devices=2, strategy=STRATEGIES[strategy]())
        own.fit(module, datamodule=data)
        return kinds

    assert on_two_ranks(work) == [[1] * STEPS, [0] * STEPS]
    assert len(losses(tmp_path / strategy)) == STEPS


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one_process(strategy: str, tmp_path: Path) -> None:
    source = documents(tmp_path)

    def run(ranks: int) -> Any:
        text = TextShare(source=source, tokens=4 * 48, length=48)
        data = {"steps": 3, "samples": 6, "micro_batch": 2, "text": text, "text_micro_batch": 2 // ranks}
        chosen = STRATEGIES[strategy]() if ranks > 1 else "auto"
        stage = settings("instruct", lr=1e-3, eps=1e-6)
        folder = tmp_path / str(ranks)
        return fit(folder, build=tiny, stage=stage, data=data, devices=ranks, strategy=chosen)

    def test(ranks: int, module: Any) -> dict[str, float]:
        sets = {"text": EvaluationSet(source=source, task="perplexity", limit=15)}
        data = MultimodalDataModule(test=sets, eval_batch=4, processor=module.processor)
        chosen = STRATEGIES[strategy]() if ranks > 1 else "auto"
        tester = trainer(tmp_path / "test", devices=ranks, strategy=chosen, logger=False, callbacks=[])
        return tester.test(module, datamodule=data, verbose=False)[0]  # pyright: ignore

    def work(rank: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        return weights(run(2)), test(2, tiny())

    (found, first), (_, second) = on_two_ranks(work)
    for name, tensor in weights(run(1)).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    curves = [[loss for _, loss in losses(tmp_path / ranks)] for ranks in ("1", "2")]
    assert curves[1] == pytest.approx(curves[0], rel=1e-6)
    expected = test(1, tiny())
    assert first == second == pytest.approx(expected, rel=1e-6)

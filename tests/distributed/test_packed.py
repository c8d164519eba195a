"""A net packed, dealt by a budget to two ranks and by workers, learns what it learns from padded rows on one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_modules.module import MultimodalDataModule
from data_modules.sources.source import Source
from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.contracts import Sample, Turn
from lightning_mllm.training.checkpoints import newest
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from tests.architectures.sphinxes import POOLED
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_two_ranks import STRATEGIES
from tests.training.data import Drawn
from tests.training.runs import losses, settings, trainer, weights
from tests.training.test_restarts import StopIn, Stopped

FULL = bool(os.environ.get("MLLM_FULL"))

BATCH, STEPS = 12, 3


class Questions(Source):
    """Two questions an image, and every fifth about none, with answers of one to six words."""

    def load(self) -> None: ...

    def __len__(self) -> int:
        return 30

    def has_image(self, index: int) -> bool:
        return index % 5 != 4

    def image_key(self, index: int) -> int | None:
        return index // 2 if self.has_image(index) else None

    def length(self, index: int) -> int:
        return 3 + index * 7 % 6

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        seen = self.has_image(index)
        image = Drawn(f"{index // 2}", (index // 2 * 15, 99, 255 - index // 2))
        turns = (
            Turn(role="user", text=("<image>\n" if seen else "") + f"say {index}"),
            Turn(role="assistant", text="a red square " * (1 + index * 7 % 6)),
        )
        return Sample(id=f"q{index}", turns=turns, images=(image,) if seen else ())


NETS: dict[str, tuple[str, Callable[[StageSettings], MultimodalModule]]] = {
    "llava": ("instruct", lambda stage: LLaVA.tiny(stage=stage, chat="vicuna_v1")),
    "sphinx": ("instruct", lambda stage: Sphinx.tiny(stage=stage, **POOLED)),
    "cogvlm": ("chat_lm", lambda stage: CogVLM.tiny(stage=stage)),
}
"""Stage, and what makes the net for it."""


def run(
    folder: Path, *, net: str = "llava", steps: int = STEPS, resume: bool = False, data: Any, **arguments: Any
) -> dict[str, Tensor]:
    torch.manual_seed(3)
    stage, tiny = NETS[net]
    module = tiny(settings(stage, global_batch=BATCH, steps=steps, reduction="micro_batch_mean", per_device_batch=4))
    source: dict[str, Any] = {"questions": Questions()}
    datamodule = MultimodalDataModule(train=source, steps=steps, global_batch=BATCH, processor=module.processor, **data)
    own = trainer(folder, **arguments)
    own.accumulate_grad_batches = datamodule.accumulation(own.world_size)
    own.fit(module, datamodule=datamodule, ckpt_path=newest(folder / "checkpoints") if resume else None)
    return weights(module)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Losses and final weights, by the order of the samples."""
    folder = tmp_path_factory.mktemp("padded")
    runs = {group: run(folder / group, data={"micro_batch": BATCH, "group": group}) for group in ("none", "image")}
    return {group: (found, losses(folder / group)) for group, found in runs.items()}


def same(found: dict[str, Tensor], folder: Path, expected: Any) -> None:
    tensors, curve = expected
    assert [loss for _, loss in losses(folder)] == pytest.approx([loss for _, loss in curve], rel=1e-5)
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6, msg=name)


def test_one_process_that_stops_and_goes_on(padded: Any, tmp_path: Path) -> None:
    data = {"pack": True, "token_budget": 300, "group": "image", "workers": 1}
    with pytest.raises(Stopped):
        run(tmp_path, data=data, callbacks=[StopIn(4, "after")])
    same(run(tmp_path, data=data, resume=True), tmp_path, padded["image"])


def test_two_ranks(padded: Any, tmp_path: Path) -> None:
    def work(rank: int) -> list[dict[str, Tensor]]:
        data = {"pack": True, "token_budget": 200}
        given = {name: {"strategy": make(), "devices": 2} for name, make in STRATEGIES.items()}
        return [run(tmp_path / name, data=data, **each) for name, each in given.items()]

    (found, _) = on_two_ranks(work)
    for name, each in zip(STRATEGIES, found, strict=True):
        same(each, tmp_path / name, padded["none"])


@pytest.mark.skipif(not FULL, reason="MLLM_FULL=1 takes it")
@pytest.mark.parametrize(("net", "budget"), [("sphinx", 1000), ("cogvlm", 400)])
def test_views_and_experts_on_two_ranks(net: str, budget: int, tmp_path: Path) -> None:
    """Several views of an image, parameters spread."""
    expected = run(tmp_path / "padded", net=net, steps=2, data={"micro_batch": BATCH})

    def work(rank: int) -> dict[str, Tensor]:
        data = {"pack": True, "token_budget": budget}
        return run(tmp_path / "packed", net=net, steps=2, data=data, strategy=STRATEGIES["fsdp2"](), devices=2)

    found, _ = on_two_ranks(work)
    same(found, tmp_path / "packed", (expected, losses(tmp_path / "padded")))

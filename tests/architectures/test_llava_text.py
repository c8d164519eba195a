"""Plain text beside images: one gradient however a step is cut, the same bits after a stop, and what it keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.evaluation import EvaluationSet
from data_modules.module import MultimodalDataModule, TextDataModule
from data_modules.sources import TextLines
from data_modules.text import TextShare
from lightning_mllm.architectures.language_model import LanguageModelPretraining
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.training.stage import StageSettings
from tests.data_modules.files import write
from tests.training.data import ToyData
from tests.training.runs import fit, losses, settings, trainer, weights
from tests.training.test_restarts import stopped

LENGTH, ROWS = 48, 4
STAGE = settings("instruct", gradient_clip=1.0)


def documents(folder: Path) -> TextLines:
    texts = [f"There are {k} cubes. " + "One of them is red. " * (k % 6) for k in range(40)]
    return TextLines(write(folder / "corpus.jsonl", [{"text": text} for text in texts]))


def tiny(stage: StageSettings | None = None) -> LLaVA:
    return LLaVA.tiny(stage=stage)


def arguments(folder: Path, **data: Any) -> dict[str, Any]:
    share = TextShare(source=documents(folder), tokens=ROWS * LENGTH, length=LENGTH)
    return {"build": tiny, "stage": STAGE, "data": {"steps": 3, "samples": 6, "text": share, **data}}


@pytest.mark.parametrize(("micro", "text_micro"), [(4, 4), (2, 1), (1, 2)])
def test_the_gradient_of_a_step_is_that_of_all_its_rows(
    micro: int, text_micro: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    clip = LLaVA.configure_gradient_clipping

    def look(self: LLaVA, *given: Any, **named: Any) -> None:
        seen.append({name: p.grad.clone() for name, p in self.net.named_parameters() if p.grad is not None})
        clip(self, *given, **named)

    monkeypatch.setattr(LLaVA, "configure_gradient_clipping", look)
    given = arguments(tmp_path, steps=1, micro_batch=micro, text_micro_batch=text_micro)
    fit(tmp_path, every_n_steps=0, **given)

    module = tiny(STAGE)
    module.configure_model()
    data = ToyData(**given["data"], processor=module.processor)
    text = data.rows
    assert text is not None
    rows = [module.processor.encode(text.sample(text.at(k))) for k in range(ROWS)]
    images = [module.processor.encode(_sample(data, k)) for k in range(4)]
    batch = module.processor.collate([*rows, *images])
    assert batch.num_images == 4 and batch.segments.max() > 1
    output = module(batch)
    output.loss.backward()
    learned = {name: p.grad for name, p in module.net.named_parameters() if p.grad is not None}
    assert set(seen[0]) == set(learned)
    for name, gradient in learned.items():
        torch.testing.assert_close(seen[0][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert losses(tmp_path)[0][1] == pytest.approx(output.loss.item(), rel=1e-5)


def _sample(data: MultimodalDataModule, position: int) -> Any:
    from data_modules.mixture_sampler import seeded

    place = data.order.at(position)
    return data.train[place.source].sample(place.index, seeded(data.seed, "sample", *place))


def test_stopped_anywhere_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Three steps of four micro-batches: two of text, two of images; stops at the end of a step and inside."""
    given = arguments(tmp_path, micro_batch=2, text_micro_batch=2, workers=0)
    module = fit(tmp_path / "whole", **given)
    expected, curve = weights(module), losses(tmp_path / "whole")
    assert len(curve) == 3
    for index in (3, 5, 10):
        folder = tmp_path / str(index)
        stopped(folder, index, "after", **given)
        found = weights(fit(folder, resume=True, **given))
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []
        assert losses(folder) == curve


def test_text_alone_trains_a_language_model(tmp_path: Path) -> None:
    def data(module: LanguageModelPretraining) -> TextDataModule:
        test = {"text": EvaluationSet(source=documents(tmp_path), task="perplexity")}
        shape = {"steps": 12, "global_batch": 8, "micro_batch": 4}
        return TextDataModule(documents(tmp_path), length=64, test=test, processor=module.processor, **shape)

    stage = StageSettings(name="pretrain", lr=2e-2, steps=12, global_batch=8, warmup=0.1)
    module = LanguageModelPretraining.tiny(stage=stage)
    folder = tmp_path / "pretrain"
    own = trainer(folder, accumulate_grad_batches=2)
    own.fit(module, datamodule=data(module))
    curve = [loss for _, loss in losses(folder)]
    assert len(curve) == 12 and curve[-1] < 0.6 * curve[0]

    tester = trainer(folder, logger=False, callbacks=[])
    (scores,) = tester.test(module, datamodule=data(module), verbose=False)
    written = json.loads((folder / "test.json").read_text())
    assert list(written["scores"]) == ["perplexity"] and written["samples"] == {"perplexity": 40}
    assert written["scores"]["perplexity"]["value"] == pytest.approx(scores["test/perplexity"], rel=1e-6)
    source = documents(tmp_path)
    source.load()
    rows = [module.processor.encode(source.sample(index, torch.Generator())) for index in range(40)]
    with torch.no_grad():
        loss = module(module.processor.collate(rows)).loss
    assert scores["test/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    with pytest.raises(ValueError, match=r"data\.test: found only sets of perplexity, expected one that is answered"):
        tester.predict(module, datamodule=data(module))


def test_a_net_with_a_frozen_language_model_keeps_its_perplexity_to_the_bit(tmp_path: Path) -> None:
    def perplexity(module: Any, folder: Path) -> float:
        test = {"text": EvaluationSet(source=documents(tmp_path), task="perplexity", limit=20)}
        data = MultimodalDataModule(test=test, eval_batch=7, processor=module.processor)
        (scores,) = trainer(folder, logger=False, callbacks=[]).test(module, datamodule=data, verbose=False)
        return scores["test/perplexity"]

    before = perplexity(tiny(), tmp_path / "before")
    align = fit(tmp_path / "align", build=tiny, stage=settings("align"), data={"steps": 2})
    instruct = fit(tmp_path / "instruct", build=tiny, stage=settings("instruct"), data={"steps": 2})
    assert perplexity(align, tmp_path / "align") == before != perplexity(instruct, tmp_path / "instruct")

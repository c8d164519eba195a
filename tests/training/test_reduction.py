"""Each reduction of a loss is what its published code computes, however a global batch is cut, and after a resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_modules.module import MultimodalDataModule
from data_modules.sources.source import Source
from lightning_mllm.contracts import IGNORE, Batch, Output, Sample, Term, Turn
from lightning_mllm.training.checkpoints import newest
from lightning_mllm.training.reduction import row_weights, step_weights
from lightning_mllm.training.stage import StageSettings
from tests.distributed.ranks import on_two_ranks
from tests.distributed.test_two_ranks import STRATEGIES
from tests.toy import Toy, ToyLanguage, ToyProcessor
from tests.training.data import Drawn
from tests.training.runs import losses, settings, trainer
from tests.training.test_restarts import StopIn, Stopped

BATCH, DEVICE, STEPS = 32, 8, 3
REDUCTIONS = ("token_mean", "micro_batch_mean", "sample_mean")
# float32: a gradient is a sum over 32 rows of up to 140 tokens, added in another order; rounding errors of 6e-8 grow
# with the square root of that number.
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-7}


class Answers(Source):
    """Pictures whose answers all have `tokens` tokens, the end among them."""

    def __init__(self, tokens: int, samples: int = 40) -> None:
        self.tokens, self.samples = tokens, samples

    def load(self) -> None: ...

    def __len__(self) -> int:
        return self.samples

    def has_image(self, index: int) -> bool:
        return True

    def length(self, index: int) -> int:
        return self.tokens

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        text = "".join(chr(97 + (index * 7 + k * k) % 26) for k in range(self.tokens - 1))
        image = Drawn(f"{self.tokens}-{index}", (index * 5 % 256, self.tokens, 255 - index))
        turns = (Turn(role="user", text="<image>say"), Turn(role="assistant", text=text))
        return Sample(id=f"{self.tokens}-{index}", turns=turns, images=(image,))


class Unpacked(ToyProcessor):
    """Takes what is to be packed, and pads it: the toy knows no packed rows."""

    def collate(self, rows: Any, *, padding: Any = "right", packed: bool = False) -> Batch:
        return super().collate(rows, padding=padding)


def data(micro: int, **more: Any) -> MultimodalDataModule:
    sources: dict[str, Any] = {"short": Answers(3), "middle": Answers(12), "long": Answers(140)}
    if more.get("pack"):
        more["processor"] = Unpacked()
    return MultimodalDataModule(train=sources, steps=STEPS, global_batch=BATCH, micro_batch=micro, **more)


def stage(reduction: Any) -> StageSettings:
    # The rate is too small to move a weight far: every step's gradients are nearly those of the first weights.
    return settings(global_batch=BATCH, reduction=reduction, per_device_batch=DEVICE, lr=1e-3, steps=STEPS)


def run(
    folder: Path, reduction: str, micro: int, *, resume: bool = False, dealt: Any = None, **arguments: Any
) -> list[dict[str, Tensor]]:
    """Trains a toy; the gradients of each optimizer step, whole on every rank."""
    torch.manual_seed(3)
    module = Toy(language=ToyLanguage(depth=1), stage=stage(reduction))
    seen: list[dict[str, Tensor]] = []
    clip = module.configure_gradient_clipping

    def look(optimizer: Any, *given: Any, **named: Any) -> None:
        clip(optimizer, *given, **named)
        seen.append({name: _whole(p.grad).clone() for name, p in module.net.named_parameters() if p.grad is not None})

    module.configure_gradient_clipping = look  # type: ignore[method-assign]
    datamodule = data(micro, processor=module.processor, **(dealt or {}))
    own = trainer(folder, **arguments)
    own.accumulate_grad_batches = datamodule.accumulation(own.world_size)
    own.fit(module, datamodule=datamodule, ckpt_path=newest(folder / "checkpoints") if resume else None)
    return seen


def _whole(gradient: Any) -> Tensor:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def by_hand(reduction: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first step, from one token after the other."""
    torch.manual_seed(3)
    module = Toy(language=ToyLanguage(depth=1), stage=stage(reduction))
    module.configure_model()
    batch = next(iter(data(BATCH, processor=module.processor).train_dataloader()))
    logits = module.net.language.head(module.net.language(module.net.embeddings(batch), batch.segments))
    rows = []
    for row in range(BATCH):
        places = [t for t in range(1, batch.tokens.shape[1]) if batch.labels[row, t] != IGNORE]
        rows.append([F.cross_entropy(logits[row, t - 1], batch.labels[row, t]) for t in places])
    assert {len(row) for row in rows} == {3, 12, 140}

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).sum() / len(values)

    groups = {
        "token_mean": [rows],
        "micro_batch_mean": [rows[k : k + DEVICE] for k in range(0, BATCH, DEVICE)],
        "sample_mean": [[row] for row in rows],
    }[reduction]
    loss = mean([mean([token for row in group for token in row]) for group in groups])
    trained = {name: p for name, p in module.net.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()))
    return loss.item(), dict(zip(trained, found, strict=True))


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[float, dict[str, Tensor]]]:
    return {reduction: by_hand(reduction) for reduction in REDUCTIONS}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)


def test_the_three_reductions_are_three_losses(expected: Any) -> None:
    values = [loss for loss, _ in expected.values()]
    gradients = [gradient["language.head.weight"] for _, gradient in expected.values()]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(values[one] - values[other]) > 1e-3
        assert float((gradients[one] - gradients[other]).norm() / gradients[one].norm()) > 0.05


@pytest.mark.parametrize("micro", [32, 8, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cuts_into_micro_batches(reduction: str, micro: int, expected: Any, tmp_path: Path) -> None:
    """Also into smaller ones than the published, whose mean is then over several of ours."""
    found = run(tmp_path, reduction, micro)
    loss, gradients = expected[reduction]
    same(found[0], gradients)
    assert losses(tmp_path)[0][1] == pytest.approx(loss, rel=1e-5)
    assert losses(tmp_path, "train/half")[0][1] == pytest.approx(loss / 2, rel=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_resumed_step_is_the_same_step(reduction: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", reduction, 8)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", reduction, 8, callbacks=[StopIn(2 * 4 + 1, "after")])
    rest = run(tmp_path / "cut", reduction, 8, resume=True)
    assert len(rest) == 1
    for name, tensor in whole[2].items():
        assert torch.equal(rest[0][name], tensor), name
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cuts_into_two_ranks_of_two_micro_batches(strategy: str, expected: Any, tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, dict[str, Tensor]]:
        return {
            reduction: run(tmp_path / reduction, reduction, 8, devices=2, strategy=STRATEGIES[strategy]())[0]
            for reduction in REDUCTIONS
        }

    first, second = on_two_ranks(work)
    for reduction, (loss, gradients) in expected.items():
        same(first[reduction], gradients)
        same(second[reduction], gradients)
        assert losses(tmp_path / reduction)[0][1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("how", [{"pack": True}, {"pack": True, "token_budget": 800}], ids=["micro-batches", "budget"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_samples_that_are_dealt(reduction: str, how: Any, expected: Any, tmp_path: Path) -> None:
    """Micro-batches of different numbers of samples, in another order: the same loss and gradients."""
    found = run(tmp_path, reduction, 8, dealt=how)
    loss, gradients = expected[reduction]
    same(found[0], gradients)
    assert losses(tmp_path)[0][1] == pytest.approx(loss, rel=1e-5)
    loader = data(8, **how).train_dataloader()
    step = [batch.numbers for batch in loader][: loader.accumulation]
    dealt_to = [number for numbers in step for number in numbers]
    assert sorted(dealt_to) == list(range(BATCH)) != dealt_to
    assert "token_budget" not in how or len(set(map(len, step))) > 1


def test_samples_that_are_dealt_to_two_ranks(expected: Any, tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, dict[str, Tensor]]:
        how = {"pack": True, "token_budget": 500}
        return {each: run(tmp_path / each, each, 8, dealt=how, devices=2, strategy="ddp")[0] for each in REDUCTIONS}

    first, second = on_two_ranks(work)
    for reduction, (loss, gradients) in expected.items():
        same(first[reduction], gradients)
        same(second[reduction], gradients)
        assert losses(tmp_path / reduction)[0][1] == pytest.approx(loss, rel=1e-5)


def batches(*rows: int, own_mean: float | None = None) -> Iterator[Any]:
    """Micro-batches of so many rows."""
    first = 0
    for count in rows:
        yield of_rows(range(first, first + count), own_mean)
        first += count


def of_rows(chosen: Sequence[int], own_mean: float | None = None, **noted: Any) -> Batch:
    """A micro-batch of these rows of a global batch."""
    whole = next(iter(data(BATCH, processor=Toy().processor).train_dataloader()))
    tensors = {
        name: getattr(whole, name)[list(chosen)] for name in ("labels", "tokens", "segments", "kinds", "positions")
    }
    ids = [whole.ids[row] for row in chosen]
    return replace(whole, step=(), own_mean=own_mean, ids=ids, **tensors, **noted)


def test_weights_do_not_depend_on_how_rows_are_dealt() -> None:
    """Text with a mean of its own and samples, in micro-batches of other sizes and in another order."""
    plain = [of_rows(range(6), 0.5), of_rows(range(16))]
    dealt = [
        of_rows(numbers, mean, numbers=tuple(numbers), together=6 if mean else 16)
        for numbers, mean in (([5, 0], 0.5), ([1, 4, 2, 3], 0.5), ([15, 2, 7], None), (range(3, 7), None))
    ]
    dealt.append(of_rows(numbers := [14, 0, 8, 13, 1, 12, 9, 11, 10], None, numbers=tuple(numbers), together=16))
    for reduction in REDUCTIONS:
        expected = step_weights(plain, reduction, 8, torch.device("cpu"))
        found = step_weights(dealt, reduction, 8, torch.device("cpu"))
        for each, batch in zip(found, dealt, strict=True):
            whole = expected[0 if batch.own_mean else 1]
            for name in ("tokens", "of_tokens", "of_rows"):
                assert torch.equal(getattr(each, name), getattr(whole, name)[list(batch.numbers)]), (reduction, name)


def test_text_may_have_a_mean_of_its_own_that_is_added() -> None:
    text, samples = next(batches(6, own_mean=0.5)), list(batches(8, 8))
    for reduction in REDUCTIONS:
        first, *others = step_weights([text, *samples], reduction, 8, torch.device("cpu"))
        assert float((first.of_tokens * first.tokens).sum()) == pytest.approx(0.5)
        assert float(first.of_rows.sum()) == pytest.approx(0.5)
        assert sum(float((each.of_tokens * each.tokens).sum()) for each in others) == pytest.approx(1)
        assert sum(float(each.of_rows.sum()) for each in others) == pytest.approx(1)
    pooled = step_weights([replace(text, own_mean=None), *samples], "token_mean", None, torch.device("cpu"))
    assert len({float(weight) for each in pooled for weight in each.of_tokens}) == 1


def test_rows_without_tokens() -> None:
    tokens = torch.tensor([0, 4, 0, 0, 2, 6])
    assert row_weights(tokens, "sample_mean").tolist() == pytest.approx([0, 1 / 12, 0, 0, 1 / 6, 1 / 18])
    # A micro-batch of which nothing is learned has a loss of 0 that is averaged too, as in LLaMA2-Accessory.
    assert row_weights(tokens, "micro_batch_mean", 2).tolist()[1] == pytest.approx(1 / 12)
    with pytest.raises(ValueError, match=r"stage.per_device_batch: found 4, expected a divisor of the 6 rows"):
        row_weights(tokens, "micro_batch_mean", 4)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"reduction": "mean"}, r"stage.reduction: found 'mean', expected one of token_mean, micro"),
        ({"reduction": "micro_batch_mean"}, r"stage.per_device_batch: found none, expected the samples whose"),
        ({"per_device_batch": 3, "global_batch": 8}, r"found 3, expected a divisor of stage.global_batch = 8"),
    ],
)
def test_wrong_settings(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StageSettings(name="instruct", **given)


def test_a_loader_that_shows_no_micro_batch_ahead_is_refused(tmp_path: Path) -> None:
    module = Toy(language=ToyLanguage(depth=1), stage=stage("token_mean"))
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(replace(batch, step=()), batch_idx)
    with pytest.raises(ValueError, match=r"shows 1 micro-batches of an optimizer step ahead .* expected the 4"):
        trainer(tmp_path, accumulate_grad_batches=4).fit(module, datamodule=data(8, processor=module.processor))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda term: {"language": replace(term, tokens=term.tokens + 1)},
            r"^Toy\.forward: .* in 32 rows of step 1, exp",
        ),
        (
            lambda term: {"language": replace(term, losses=term.losses[1:], tokens=term.tokens[1:])},
            r"^forward: found the shape \(7,\) in the term 'language', expected a value of each of the 8 rows",
        ),
        (lambda term: {"language": Term(losses=term.losses[1:])}, r"^forward: found the shape \(7,\) in the term"),
        (lambda term: {"language": replace(term, weight=0)}, r"^forward: found language of weight 0, expected a term"),
        (lambda term: {}, r"^forward: found no term, expected a term to learn"),
    ],
)
def test_what_a_net_gives_wrong_is_one_sentence(change: Any, sentence: str, tmp_path: Path) -> None:
    class Wrong(Toy):
        def forward(self, batch: Any) -> Output:
            return Output(terms=change(super().forward(batch).terms["language"]))

    module = Wrong(language=ToyLanguage(depth=1), stage=stage("token_mean"))
    module._title = "Toy"
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path, accumulate_grad_batches=4).fit(module, datamodule=data(8, processor=module.processor))

"""Averages of the weights: their formulas, and that training never notices them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import load_file
from torch import Tensor

from lightning_mllm.cli import main
from lightning_mllm.training.callbacks.averaging import EMA, LAWA, SWA, Averaging
from tests.test_cli import refused
from tests.toy import Toy
from tests.training.data import ToyData
from tests.training.runs import fit, last, losses, saved_tensors, settings, trainer, weights
from tests.training.test_restarts import StopIn, Stopped

Kind = Callable[[], Averaging]
KINDS: dict[str, Kind] = {
    "ema": lambda: EMA(decay=0.8),
    "ema, warmed up": lambda: EMA(decay=0.95, warmup=True, update_starting_at_step=1),
    "swa": lambda: SWA(update_starting_at_step=0.25),
    "lawa": lambda: LAWA(snapshots=3, update_every_n_steps=2),
}
W = torch.tensor([1.0, 4.0, 9.0, 2.0, 8.0, 5.0])
"""A weight after each of six steps."""


def handed_over(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights" / "model.safetensors")


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert set(found) == set(expected)
    return [name for name in found if not torch.equal(found[name], expected[name])]


def of(average: Averaging) -> dict[str, Tensor]:
    """The average, and the toy's buffer, which is none of its parameters."""
    return {**{name: average.mean(name) for name in average.held[0]}, "language.scale": torch.tensor(2.0)}


# ---- formulas ------------------------------------------------------------------------------------------------------


def after(average: Averaging, values: Tensor = W) -> Tensor:
    for value in values:
        average.update({"w": value.clone()})
    assert average.updates == len(values)
    return average.mean("w")


def test_ema_in_closed_form() -> None:
    d, n = 0.7, len(W)
    shares = torch.tensor([d ** (n - 1), *((1 - d) * d ** (n - 1 - i) for i in range(1, n))])
    assert shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close(after(EMA(decay=d)), shares @ W)


def test_ema_warmed_up_in_closed_form() -> None:
    average = W[0].double()
    for n, value in enumerate(W[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(after(EMA(decay=0.3, warmup=True)), average.float())
    # (1 + 4) / (10 + 4) is the first above 0.3: both branches of the minimum were taken.
    assert 4 / 13 > 0.3 > 3 / 12


def test_swa_is_the_mean_of_all_and_lawa_that_of_the_latest() -> None:
    torch.testing.assert_close(after(SWA()), W.mean())
    torch.testing.assert_close(after(LAWA(snapshots=4)), W[-4:].mean())
    torch.testing.assert_close(after(LAWA(snapshots=9)), W.mean())


@pytest.mark.parametrize("kind", [lambda: EMA(decay=0.999), SWA, lambda: LAWA(snapshots=100)])
def test_averages_of_16_bits_do_not_stall(kind: Kind) -> None:
    """A step of one thousandth is lost in bfloat16, whose numbers near 1 are 1/128 apart."""
    average = kind()
    average.update({"w": torch.zeros((), dtype=torch.bfloat16)})
    for _ in range(1000):
        average.update({"w": torch.ones((), dtype=torch.bfloat16)})
    expected = {"EMA": 1 - 0.999**1000, "SWA": 1000 / 1001, "LAWA": 1.0}[type(average).__name__]
    assert average.mean("w").dtype == torch.float32
    assert average.mean("w").item() == pytest.approx(expected, abs=1e-5)


def test_arguments_out_of_range_are_refused() -> None:
    for wrong, sentence in {
        lambda: EMA(decay=1.0): r"EMA.decay: found 1.0, expected a number from 0 up to",
        lambda: SWA(update_every_n_steps=0): r"SWA.update_every_n_steps: found 0, expected at least 1",
        lambda: SWA(update_starting_at_step=1.5): r"SWA.update_starting_at_step: found 1.5, expected a fraction",
        lambda: LAWA(snapshots=0): r"LAWA.snapshots: found 0, expected at least 1",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            wrong()


# ---- in training ---------------------------------------------------------------------------------------------------


class Watched(Callback):
    """Notes the trained weights after each optimizer step, and whenever the net is evaluated."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, Tensor]] = {}
        self.evaluated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx) -> None:
        self.steps[trainer.global_step] = weights(pl_module)

    def on_validation_batch_start(self, trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self.evaluated.append(weights(pl_module))

    def on_test_batch_start(self, trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self.evaluated.append(weights(pl_module))


def of_steps(path: Watched, kind: Kind, steps: list[int]) -> dict[str, Tensor]:
    """The average of the weights after `steps`."""
    average = kind()
    for step in steps:
        average.update(path.steps[step])
    return {name: average.mean(name) for name in path.steps[1]}


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (lambda: EMA(decay=0.5), [1, 2, 3, 4, 5, 6, 7, 8]),
        (lambda: EMA(decay=0.5, update_every_n_steps=3), [3, 6]),
        (lambda: SWA(), [7, 8]),
        (lambda: SWA(update_starting_at_step=0.3), [4, 5, 6, 7, 8]),
        (lambda: SWA(update_starting_at_step=1, update_every_n_steps=3), [4, 7]),
        (lambda: LAWA(snapshots=2, update_every_n_steps=2), [2, 4, 6, 8]),
    ],
)
@pytest.mark.parametrize("micro", [4, 2])
def test_which_steps_are_taken_in(kind: Kind, steps: list[int], micro: int, tmp_path: Path) -> None:
    """Optimizer steps, however many micro-batches one has; what was trained alone is averaged and handed over."""
    path, average = Watched(), kind()
    module = fit(tmp_path, data={"steps": 8, "micro_batch": micro}, callbacks=[average, path], every_n_steps=0)
    assert set(average.held[0]) == set(module.trained)
    assert differing(handed_over(tmp_path), of_steps(path, kind, steps)) == []
    assert differing(weights(module), path.steps[8]) == [], "the net itself keeps the last weights"
    record = json.loads((tmp_path / "weights" / "stage.json").read_text())
    assert record["settings"]["average"] == {**average.settings, "updates": len(steps)}


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_the_average_of_lightning_where_that_works(tmp_path: Path) -> None:
    arguments = {"data": {"steps": 6}, "every_n_steps": 0}
    same = {"decay": 0.9, "update_starting_at_step": 2}
    theirs = fit(tmp_path / "theirs", callbacks=[EMAWeightAveraging(**same)], **arguments)
    fit(tmp_path / "ours", callbacks=[EMA(**same)], **arguments)
    expected, found = weights(theirs), handed_over(tmp_path / "ours")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_weights_of_another_dtype(tmp_path: Path) -> None:
    """Of float64; trained weights of 16 bits are refused (`parallelize`)."""
    torch.set_default_dtype(torch.float64)
    try:
        average = EMA(decay=0.99, device="cpu")
        module = fit(tmp_path, data={"steps": 4}, callbacks=[average], stage=settings(lr=0.1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in average.held[0].values()} == {torch.float64}
    for name, tensor in handed_over(tmp_path).items():
        assert tensor.dtype == torch.float64 and torch.equal(tensor, of(average)[name])
    assert differing(handed_over(tmp_path), weights(module))


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_its_own_weights(kind: str, tmp_path: Path) -> None:
    """Validated in between or not, averaged or not: the same bits. What is validated is the average."""
    watched = {"limit_val_batches": 1, "val_check_interval": 3}
    arguments = {"data": {"steps": 8}, "dropout": 0.3}
    plain = fit(tmp_path / "plain", **arguments)
    path = Watched()
    module = fit(tmp_path / "watched", callbacks=[KINDS[kind](), path], **watched, **arguments)
    assert differing(weights(module), weights(plain)) == []
    assert losses(tmp_path / "watched") == losses(tmp_path / "plain")
    taken = {"ema": 1, "ema, warmed up": 2, "swa": 3, "lawa": 2}[kind]
    every = 2 if kind == "lawa" else 1
    assert len(path.evaluated) == 2
    for seen, step in zip(path.evaluated, (3, 6), strict=True):
        assert differing(seen, of_steps(path, KINDS[kind], list(range(taken, step + 1, every)))) == []


def test_scores_are_those_of_what_is_handed_over(tmp_path: Path) -> None:
    """An average of the first steps only scores otherwise than what was trained."""
    arguments: dict[str, Any] = {"data": {"steps": 48}, "limit_val_batches": 1.0, "val_check_interval": 48}
    found = []
    for name, callbacks in (("raw", []), ("averaged", [LAWA(snapshots=1, update_every_n_steps=25)])):
        fit(tmp_path / name, callbacks=callbacks, stage=settings(lr=3e-2), every_n_steps=0, **arguments)
        (validated,) = losses(tmp_path / name, "val/exact_match")
        module = Toy(stage=settings(train={}, init_from={name: 1.0}), runs=str(tmp_path))
        tested = trainer(tmp_path / name, logger=False).test(module, datamodule=ToyData(), verbose=False)
        assert validated[1] == pytest.approx(tested[0]["test/exact_match"])
        found.append(validated[1])
    assert found[0] != found[1]


def test_before_anything_is_taken_in_the_weights_are_validated(tmp_path: Path) -> None:
    path = Watched()
    late = SWA(update_starting_at_step=5)
    fit(tmp_path, data={"steps": 6}, callbacks=[late, path], limit_val_batches=1, val_check_interval=2)
    assert [differing(seen, path.steps[step]) for seen, step in zip(path.evaluated[:2], (2, 4), strict=True)] == [
        [],
        [],
    ]


def test_a_validation_that_fails_gives_the_weights_back(tmp_path: Path) -> None:
    class Fail(Callback):
        def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
            raise Stopped

    module, path = Toy(stage=settings()), Watched()
    with pytest.raises(Stopped):
        fit(
            tmp_path,
            data={"steps": 4},
            build=lambda stage: module,
            callbacks=[Fail(), EMA(decay=0.5), path],
            limit_val_batches=1,
            val_check_interval=2,
        )
    assert differing(weights(module), path.steps[2]) == []
    assert differing(path.evaluated[0], path.steps[2])


# ---- restarts ------------------------------------------------------------------------------------------------------

DATA = {"steps": 6, "samples": 12}
"""Two epochs of three steps."""


@pytest.fixture(scope="module", params=zip(KINDS, (2, 4, 2, 4), strict=True), ids=str)
def unstopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    kind, micro = request.param
    arguments = {"data": {**DATA, "micro_batch": micro}, "dropout": 0.3}
    folder = tmp_path_factory.mktemp("unstopped")
    module = fit(folder, callbacks=[KINDS[kind]()], **arguments)
    return KINDS[kind], arguments, 4 // micro, weights(module), handed_over(folder)


@pytest.mark.parametrize("step", [3, 5])
def test_stopped_and_started_again(step: int, unstopped: Any, tmp_path: Path) -> None:
    """After an epoch and inside one: weights and average end with the same bits."""
    kind, arguments, accumulation, raw, average = unstopped
    with pytest.raises(Stopped):
        fit(tmp_path, callbacks=[kind(), StopIn(step * accumulation, "before")], **arguments)
    module = fit(tmp_path, callbacks=[kind()], resume=True, **arguments)
    assert differing(weights(module), raw) == []
    assert differing(handed_over(tmp_path), average) == []


def test_a_checkpoint_is_tested_with_its_average(tmp_path: Path) -> None:
    average, path = EMA(decay=0.5), Watched()
    fit(tmp_path, data={"steps": 4}, callbacks=[average])
    module = Toy(stage=settings())
    tester = trainer(tmp_path, callbacks=[EMA(decay=0.1), path], logger=False)
    tester.test(module, datamodule=ToyData(), ckpt_path=last(tmp_path), verbose=False)
    assert differing(path.evaluated[0], of(average)) == []


def test_what_a_checkpoint_was_averaged_with_is_kept_to(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"data": {"steps": 6}}
    for name, callbacks in (("averaged", [EMA(decay=0.5)]), ("plain", [])):
        with pytest.raises(Stopped):
            fit(tmp_path / name, callbacks=[*callbacks, StopIn(3, "before")], **arguments)
    for name, callbacks, sentence in (
        ("averaged", [EMA(decay=0.25)], "written with decay = 0.5 for an average, expected decay = 0.25"),
        ("averaged", [SWA()], "written with kind = 'EMA' for an average, expected kind = 'SWA'"),
        ("averaged", [], "found no average, expected the one that the checkpoint was written with"),
        ("plain", [EMA(decay=0.5)], "written with no kind for an average, expected kind = 'EMA'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit(tmp_path / name, callbacks=callbacks, resume=True, **arguments)
    fit(tmp_path / "averaged", callbacks=[EMA(decay=0.5, device="cpu")], resume=True, **arguments)


def test_averages_that_cannot_be_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    module = Toy(stage=settings())
    for callbacks, sentence in (
        ([EMA(), SWA()], "trainer.callbacks: found the averages EMA, SWA, expected one"),
        ([LAWA(update_every_n_steps=9)], "LAWA averages from step 9 on, expected one of the 8 steps of the stage"),
        ([SWA(update_starting_at_step=8)], "SWA averages from step 9 on, expected one of the 8 steps"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit(tmp_path, data={"steps": 8}, build=lambda stage: module, callbacks=callbacks)
    assert not module._configured


def test_no_checkpoint_while_the_average_is_in_the_net(tmp_path: Path) -> None:
    class Save(Callback):
        def on_validation_batch_end(self, trainer, *arguments: Any, **named: Any) -> None:
            trainer.save_checkpoint(tmp_path / "inside.ckpt")

    with pytest.raises(ValueError, match="EMA: found a checkpoint being saved while the average is in the net"):
        fit(tmp_path, data={"steps": 4}, callbacks=[EMA(), Save()], limit_val_batches=1, val_check_interval=2)


# ---- from YAML -----------------------------------------------------------------------------------------------------

CALLBACK = """\
trainer:
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - class_path: lightning_mllm.training.callbacks.averaging.EMA
      init_args: {decay: 0.9, device: cpu}
"""


def test_configured_in_a_stage_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Path(__file__).parents[2] / "toy.yaml"
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "toy"
    folder.mkdir(parents=True)
    (tmp_path / "experiments" / "_hardware").mkdir()
    (tmp_path / "experiments" / "_hardware" / "cpu.yaml").write_text("hardware: {micro_batch: 2}\n")
    (folder / "align.yaml").write_text(toy.read_text() + CALLBACK)
    main(["run", "experiments/toy"])
    run = tmp_path / "runs" / "toy" / "align"
    record = json.loads((run / "weights" / "stage.json").read_text())
    (callback,) = record["settings"]["config"]["trainer"]["callbacks"]
    assert callback["class_path"].endswith("averaging.EMA")
    assert callback["init_args"]["decay"] == 0.9 and "device" not in callback["init_args"]
    assert record["settings"]["average"]["kind"] == "EMA" and record["settings"]["average"]["updates"] == 20
    (kept,) = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert kept["init_args"]["device"] == "cpu"
    kept_tensors = saved_tensors(run)
    average, trained = (
        {name.removeprefix(prefix): each for name, each in kept_tensors.items() if name.startswith(prefix)}
        for prefix in ("average.0.", "weights.")
    )
    assert differing(handed_over(run), average) == []
    assert differing(handed_over(run), trained)
    with open(run / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 20

    # Done with this average, and another one is another recipe; where it is held is not.
    (folder / "align.yaml").write_text(toy.read_text() + CALLBACK.replace(", device: cpu", ""))
    main(["run", "experiments/toy"])
    assert "is done" in capsys.readouterr().out
    (folder / "align.yaml").write_text(toy.read_text() + CALLBACK.replace("0.9,", "0.8,"))
    assert "under other settings (trainer.callbacks)" in refused(capsys, "run", "experiments/toy")
    (folder / "align.yaml").write_text(toy.read_text() + CALLBACK.replace("decay: 0.9", "decay: 9"))
    assert "EMA.decay: found 9" in refused(capsys, "fit", f"--config={folder / 'align.yaml'}", "--run_dir=runs/other")
    (folder / "align.yaml").write_text(toy.read_text() + CALLBACK.replace("decay", "decoy"))
    assert "'decay'" in refused(capsys, "run", "experiments/toy")

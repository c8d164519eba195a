from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import Logger

from data_modules.evaluation import EvaluationSet
from data_modules.tally import SENTENCES, Tally
from lightning_mllm.contracts import Batch, Sample
from tests.data_modules.files import Echo, Numbers
from tests.data_modules.test_module import Watcher, data, trainer
from tests.distributed.ranks import on_two_ranks
from tests.language.batches import batch_of


class Row(dict[str, Any]):
    """A batch of the tests' processor, with notes on it."""

    notes: list[tuple[str, ...]]
    sources: list[str]


class Noting(Echo):
    """Samples whose number is a multiple of 3 are cut, and one was replaced."""

    def collate(self, rows: Any, *, padding: str = "right") -> Row:
        batch = Row(super().collate(rows, padding=padding))
        batch.sources = [row.id[0] for row in rows]
        batch.notes = [notes(row) for row in rows]
        return batch


def notes(sample: Sample) -> tuple[str, ...]:
    number = int(sample.turns[-1].text)
    return (("cut",) if number % 3 == 0 else ()) + (("replaced: f.json: record 5: no good",) if number == 5 else ())


class Kept(Logger):
    name, version = "kept", ""  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append(dict(metrics))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stage_says_what_happened_to_its_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    module, watcher, logger = data(processor=Noting(), workers=workers), Watcher(), Kept()
    trainer(tmp_path, logger=logger, log_every_n_steps=1).fit(watcher, datamodule=module)
    seen = [id for batch in watcher.seen for id in batch]
    expected = Counter(id[0] for id in seen if int(id[1:]) % 3 == 0)
    printed = " ".join(capsys.readouterr().out.split())
    assert "samples of train, as they came into batches" in printed and "cut" in printed and "replaced" in printed
    assert "f.json: record 5: no good" in printed
    assert logger.rows[-1]["train/samples cut"] == sum(expected.values()) > 4
    assert logger.rows[-1]["train/samples replaced"] == seen.count("a5") > 0


def test_samples_of_several_validations_count_once(tmp_path: Path) -> None:
    val = {"v": EvaluationSet(source=Numbers(10, "v"), task="vqa")}
    module, watcher, logger = data(processor=Noting(), val=val), Watcher(), Kept()
    own = trainer(tmp_path, logger=logger, log_every_n_steps=1, val_check_interval=2)
    own.fit(watcher, datamodule=module)
    assert len(watcher.answered["val", 0]) >= 40, "several validations"
    assert logger.rows[-1]["evaluation/samples cut"] == 4
    own.validate(watcher, datamodule=module, verbose=False)
    assert logger.rows[-1]["evaluation/samples cut"] == 4


def test_nothing_is_said_where_nothing_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path).fit(Watcher(), datamodule=data())
    assert "as they came into batches" not in capsys.readouterr().out


def test_counts_go_on_after_a_resume() -> None:
    one = Tally()
    one.add(SimpleNamespace(notes=[("cut",), (), ("cut", "nothing learned")], sources=["a", "a", "b"]))
    state = one.state_dict()
    assert state == {"notes": [["a", "cut", 1], ["b", "cut", 1], ["b", "nothing learned", 1]]}
    other = Tally()
    other.load_state_dict(state)
    other.add(SimpleNamespace(notes=[("cut",)] + [("replaced: s",)] * 9, sources=["a"] * 10))
    counts, sentences = other.gathered()
    assert counts == {("a", "cut"): 2, ("b", "cut"): 1, ("b", "nothing learned"): 1, ("a", "replaced"): 9}
    assert sentences == ["s"] * SENTENCES


def test_counts_of_all_ranks() -> None:
    def work(rank: int) -> Any:
        dist.init_process_group("gloo")
        tally = Tally()
        tally.load_state_dict({"notes": [["a", "cut", 5]]})
        tally.add(SimpleNamespace(notes=[("cut",)] * (rank + 1) + [(f"replaced: {rank}",)], sources=["a"] * (rank + 2)))
        return tally.gathered(), tally.state_dict()

    for (counts, sentences), state in on_two_ranks(work):
        assert counts == {("a", "cut"): 5 + 1 + 2, ("a", "replaced"): 2} and sentences == ["0", "1"]
        assert state == {"notes": [["a", "cut", 8], ["a", "replaced", 2]]}


def test_batches_move_without_waiting_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()
    batch = batch_of(torch.ones(1, 2).long(), torch.arange(2)[None])
    monkeypatch.setattr(Batch, "to", lambda self, device, non_blocking=False: asked.append(non_blocking) or self)
    module = data()
    assert module.transfer_batch_to_device(batch, torch.device("meta"), 0) is batch and asked == [True]
    moved = module.transfer_batch_to_device({"a": torch.ones(1)}, torch.device("meta"), 0)
    assert isinstance(moved, dict) and moved["a"].is_meta

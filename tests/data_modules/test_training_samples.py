"""Samples that cannot be encoded, in training: replaced, counted, listed, bounded; too long ones likewise."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint

from data_modules.bad_samples import FILE, BadLimits, BadSample, BadSampleList, identified, told
from data_modules.loader import Collate, ResumableLoader, Share
from data_modules.mixture_sampler import MixtureSampler, SampleLocation
from data_modules.module import MultimodalDataModule
from data_modules.training_samples import TrainingSamples
from lightning_mllm.contracts import Batch, Encoded, OverlongError, Sample
from lightning_mllm.training.checkpoints import newest
from tests.data_modules.files import Echo, Numbers
from tests.distributed.ranks import on_two_ranks
from tests.toy import Toy, ToyLanguage, ToyProcessor
from tests.training.data import Squares
from tests.training.runs import losses, settings, trainer, weights

FULL = os.environ.get("MLLM_FULL") == "1"
KILLS = 20 if FULL else 1
SAMPLES, STEPS, BATCH = (400, 200, 4) if FULL else (80, 40, 4)
"""Two data epochs."""
BAD = (17, 18, 50, SAMPLES - 1)
"""Two are neighbours, and one is the last; of 400 they are one in a hundred."""
LIMITS = BadLimits(share=len(BAD) / SAMPLES)


@dataclass(frozen=True)
class Broken:
    name: str

    def read(self, max_bytes: int) -> bytes:
        raise ValueError(f"{self.name}: image file is truncated")


class SomeBroken(Squares):
    """Squares, some of which cannot be read."""

    bad_records = "skip"

    def __init__(self, samples: int = SAMPLES, bad: tuple[int, ...] = BAD) -> None:
        super().__init__(samples)
        self.bad = bad

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        sample = super().sample(index, generator)
        return replace(sample, images=(Broken(f"{index}.png"),)) if index in self.bad else sample

    def where(self, index: int) -> str:
        return f"squares.jsonl:{index + 1}"


class Noting(ToyProcessor):
    """Says whose the error is, and keeps notes, as processors do."""

    image: Any = None

    def encode(self, sample: Sample, **named: Any) -> Encoded:
        try:
            return super().encode(sample, **named)
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from error

    def collate(self, rows: Any, **named: Any) -> Batch:
        batch = super().collate(rows, **named)
        batch.notes = [row.notes for row in rows]
        return batch


class KillAt(Checkpoint):
    """Ends the process without a word, before or behind the work of a micro-batch."""

    def __init__(self, index: int | None, behind: bool) -> None:
        self.index, self.behind = index, behind

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.index and not self.behind:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.index:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder: Path, kill: KillAt | None = None, limits: BadLimits = LIMITS, **named: Any) -> Any:
    """A stage over the squares, from its newest checkpoint on."""
    lightning.seed_everything(3, verbose=False)
    module = Toy(language=ToyLanguage(dropout=0.2, depth=1), stage=settings())
    source = SomeBroken()
    data = MultimodalDataModule(
        train={"squares": source},
        steps=STEPS,
        global_batch=BATCH,
        micro_batch=BATCH,
        bad_limits=limits,
        processor=Noting(),
        **named,
    )
    own = trainer(folder, every_n_steps=5 if FULL else 15, callbacks=[kill] if kill else [], log_every_n_steps=1)
    own.fit(module, datamodule=data, ckpt_path=newest(folder / "checkpoints"))
    return module


def listed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def expected_lines() -> list[dict[str, Any]]:
    by = {17: 19, 18: 19, 50: 51, SAMPLES - 1: 0}
    return [
        {
            "source": "squares",
            "index": index,
            "where": f"squares.jsonl:{index + 1}",
            "id": f"s{index}",
            "rule": f"{index}.png: image file is truncated",
            "replaced_by": f"squares.jsonl:{by[index] + 1}",
            "replaced_by_id": f"s{by[index]}",
        }
        for index in BAD
    ]


@pytest.mark.fault
def test_killed_trainings_end_with_the_same_bits_and_the_same_list(
    tmp_path: Path, fault_row: Callable[[str, str, str], None]
) -> None:
    """Two data epochs: each bad sample is listed once and counted twice."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    # Of a training that never came to a checkpoint: this one begins at the beginning.
    (whole / FILE).write_text('{"source": "squares", "index": 3}\n' * 9)
    reference = weights(fit(whole))
    assert sorted(listed(whole), key=lambda line: line["index"]) == expected_lines()
    draws = random.Random(1)
    at = sorted(draws.sample(range(3, STEPS), KILLS))
    processes = multiprocessing.get_context("fork")
    for index in at:
        kill = KillAt(index, draws.random() < 0.5)
        process = processes.Process(target=fit, args=(killed, kill))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    module = fit(killed)
    assert all(torch.equal(tensor, reference[name]) for name, tensor in weights(module).items())
    assert losses(killed) == losses(whole) and len(losses(whole)) == STEPS
    assert sorted(listed(killed), key=lambda line: line["index"]) == expected_lines()
    counts = [losses(folder, "train/samples replaced") for folder in (whole, killed)]
    assert counts == [[(STEPS, 2.0 * len(BAD))]] * 2
    fault_row("T18", f"{KILLS} of {KILLS}", "SIGKILLs with bad images: same bits, same list, exact counts")


@pytest.mark.fault
def test_training_stops_at_too_many(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    """Three may be bad: the fourth ends it, wherever it goes on, until the limit is raised."""
    for _ in range(2):
        with pytest.raises(
            ValueError, match=rf"^data\.bad_limits\.share: found 4 bad samples in a data epoch of {SAMPLES}"
        ):
            fit(tmp_path, limits=BadLimits(share=3.5 / SAMPLES))
    assert len(listed(tmp_path)) == 4
    fit(tmp_path)
    assert sorted(line["index"] for line in listed(tmp_path)) == list(BAD)
    fault_row("T18", "2 of 2", "too many bad images in a data epoch end the training, until the limit is raised")


def test_batches_and_epochs_keep_their_size() -> None:
    """In whichever process, every batch has as many rows; the order's other samples stay where they were."""

    def shown(bad: tuple[int, ...], workers: int) -> list[list[str]]:
        loader = ResumableLoader(
            TrainingSamples({"squares": SomeBroken(bad=bad)}, Noting(), seed=1),
            [(Share("b", BATCH, BATCH), MixtureSampler({"squares": SAMPLES}, seed=1, batch=BATCH))],
            collate_fn=Collate(Noting(), "right"),
            steps=SAMPLES // BATCH,
            workers=workers,
        )
        return [batch.ids for batch in loader]

    good, bad = shown((), 0), shown(BAD, 0)
    assert bad == shown(BAD, 2) and all(len(ids) == BATCH for ids in bad) and len(bad) == len(good)
    by = {"s17": "s19", "s18": "s19", "s50": "s51", f"s{SAMPLES - 1}": "s0"}
    assert bad == [[by.get(id, id) for id in ids] for ids in good]


def test_a_sample_counts_as_often_as_an_epoch_shows_it() -> None:
    line = {"source": "a", "where": "", "id": "", "rule": "r"}
    for shown, fits in ((1.0, 2), (2.0, 1), (0.5, 4)):
        kept = BadSampleList(None, BadLimits(share=0.02), 100, {"a": shown})
        for index in range(fits):
            kept.add([{**line, "index": index}] * 3)
        with pytest.raises(ValueError, match=r"bad samples in a data epoch of 100, expected at most 2.00% of it"):
            kept.add([{**line, "index": 99}])


def test_ranks_share_the_list(tmp_path: Path) -> None:
    """Two ranks find the same 60 samples and 20 of their own each, in other orders; a torn line goes."""
    file = tmp_path / FILE
    file.write_text('{"source": "a", "index": 0, "where": "", "id": "", "rule": ""}\n{"source": "a", "ind')

    def work(rank: int) -> int:
        kept = BadSampleList(file, BadLimits(share=1), 1000)
        found = [*range(60), *range(100 + 20 * rank, 120 + 20 * rank)]
        random.Random(rank).shuffle(found)
        for index in found:
            kept.add([{"source": "a", "index": index, "where": f"f:{index}", "id": "7", "rule": "r" * 500}])
        return len(kept._known)

    known = on_two_ranks(work)
    lines = listed(tmp_path)
    assert sorted(line["index"] for line in lines) == [*range(60), *range(100, 140)] and max(known) == 100
    with pytest.raises(ValueError, match=r"found 100 bad samples .* listed in .*bad_samples\.jsonl, expected at most"):
        BadSampleList(file, BadLimits(share=0.09), 1000).add(lines[:1])


def test_ids_and_rules_of_sentences() -> None:
    assert identified("sample 'a\\'b': 1.jpg: gone") == {"id": "a\\'b", "rule": "1.jpg: gone"}
    assert identified("no sample: gone") == {"id": "", "rule": "no sample: gone"}
    bad = BadSample(kind="replaced", source="s", index=1, where="f:2", id="7", rule="gone \ud83d")
    assert told(bad.note("f:3", "8")) == ("replaced", "f:2: sample '7': gone \ud83d")
    assert told("replaced: in words") == ("replaced", "in words") and told("cut") == ("cut", "")
    wrongs: list[dict[str, Any]] = [{"share": 1.5}, {"in_a_row": 0}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"data\.bad_limits\.\w+: found"):
            BadLimits(**wrong)


class Cutting(Echo):
    """Samples whose number is a multiple of 4 are too long; of those of 8 nothing would be left."""

    def encode(self, sample: Sample, *, generate: bool = False, random: Any = None) -> Any:
        number, empty = int(sample.turns[-1].text), torch.zeros(0, dtype=torch.long)
        if number % 8 == 0:
            raise OverlongError(f"sample {sample.id!r}: found 9 tokens, expected at most 5: no answer")
        notes = ("overlong: found 9 tokens, expected at most 5",) if number % 4 == 0 else ()
        return Encoded(
            id=sample.id,
            tokens=empty,
            labels=empty,
            kinds=empty.byte(),
            images=empty.byte().view(0, 3, 1, 1),
            notes=notes,
        )


@pytest.mark.parametrize("bad_records", ["refuse", "skip"])
@pytest.mark.parametrize("overlong", ["mask", "drop", "stop"])
def test_overlong_samples(overlong: Any, bad_records: Any) -> None:
    source = Numbers(16, "n")
    source.bad_records = bad_records
    samples = TrainingSamples({"n": source}, Cutting(), 1, overlong=overlong)

    def at(index: int) -> Any:
        return samples[SampleLocation(0, "n", index)]

    assert at(5).id == "n5" and not at(5).notes
    if overlong == "stop":
        for index in (4, 8):
            with pytest.raises(ValueError, match=rf"sample 'n{index}': found 9 tokens.*\(data.overlong: stop\)$"):
                at(index)
    elif overlong == "drop":
        for index in (4, 8):
            row, note = at(index), f"sample 'n{index}': found 9 tokens, expected at most 5"
            assert (
                row.id == f"n{index + 1}"
                and told(row.notes[0])[0] == "dropped"
                and told(row.notes[0])[1].startswith(note)
            )
    else:
        assert at(4).id == "n4" and at(4).notes == ("overlong",)
        if bad_records == "refuse":
            with pytest.raises(ValueError, match=r"^sample 'n8': found 9 tokens, expected at most 5: no answer$"):
                at(8)
        else:
            assert at(8).id == "n9" and told(at(8).notes[0])[0] == "replaced"


def test_too_many_in_a_row() -> None:
    source = SomeBroken(20, bad=tuple(range(3, 9)))
    for most, fails in ((6, True), (7, False)):
        samples = TrainingSamples({"s": source}, Noting(), 1, limits=BadLimits(in_a_row=most))
        if fails:
            with pytest.raises(ValueError, match=r"^data\.train\.s: found 6 samples in a row .* the first: squares"):
                samples[SampleLocation(0, "s", 3)]
        assert not isinstance(samples[SampleLocation(0, "s", 4)], str)
    with pytest.raises(ValueError, match=r"^data\.overlong: found 'cut', expected one of mask, drop, stop$"):
        TrainingSamples({"s": source}, Noting(), 1, overlong="cut")  # type: ignore[arg-type]

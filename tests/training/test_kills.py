"""Training that is killed at any moment, or stopped behind any step, ends with the very same bits.

A process that has imported everything forks the one that trains, in a process group of its own; the group is killed
after a random time, and started again until the stage is done. Each step that is taken, again or for the first time,
tells its loss and its samples, and all of them must be those of a run that nobody stopped; so must the weights.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import random
import shutil
import signal
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback
from PIL import Image

from data_modules.module import MultimodalDataModule
from data_modules.sources import LlavaConversations
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.training.checkpoints.finding import must_have
from tests.data_modules.files import write
from tests.toy import Toy, ToyLanguage
from tests.training.data import ToyData
from tests.training.runs import settings, trainer
from tests.training.test_restarts import StopIn, Stopped

FULL = bool(os.environ.get("MLLM_FULL"))
DONE = Path("weights/stage.json")
Train = Callable[..., None]


class Told(Callback):
    """Appends a line for each optimizer step: its number, its loss to the last bit, its samples."""

    def __init__(self, folder: Path) -> None:
        self.file, self.ids = folder / "told.txt", list[str]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: object, batch: Any, batch_idx: int) -> None:
        self.ids += batch.ids
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            loss = float(trainer.callback_metrics["train/loss"]).hex()
            samples = hashlib.sha256(" ".join(self.ids).encode()).hexdigest()[:8]
            with self.file.open("a") as file:  # one write, which is there or not
                file.write(f"{trainer.global_step} {loss} {samples}\n")
            self.ids = []


def toy(
    folder: Path,
    *,
    steps: int,
    accumulation: int = 1,
    workers: int = 0,
    validate: int = 0,
    callbacks: Sequence[Callback] = (),
    every_n_steps: int = 1,
) -> None:
    """Trains with dropout and shades that are drawn, or goes on; three passes over the data."""
    data: dict[str, Any] = {
        "samples": steps * 4 // 3,
        "steps": steps,
        "micro_batch": 4 // accumulation,
        "workers": workers,
    }
    if accumulation == 3:
        data = {**data, "samples": steps * 6 // 3, "global_batch": 6, "micro_batch": 2}
    lightning.seed_everything(3, verbose=False)
    stage = settings(global_batch=data.get("global_batch", 4))
    module = Toy(language=ToyLanguage(dropout=0.3), stage=stage)
    checks = {"limit_val_batches": 1, "val_check_interval": validate * accumulation} if validate else {}
    _fit(folder, module, ToyData(**data, processor=module.processor), callbacks, every_n_steps, **checks)


def packed(folder: Path, *, steps: int, shards: Path, workers: int = 0, every_n_steps: int = 3) -> None:
    """Trains on shards, whose samples are dealt to packed rows, or goes on."""
    lightning.seed_everything(3, verbose=False)
    module = LLaVA.tiny(stage=settings("instruct", global_batch=6, steps=steps), chat="vicuna_v1")
    data = MultimodalDataModule(
        train={
            "lines": LlavaConversations(f"{shards}/lines-*.jsonl", str(shards)),
            "tars": LlavaConversations(f"{shards}/tars-{{000..003}}.tar"),
        },
        group="shard",
        steps=steps,
        global_batch=6,
        pack=True,
        token_budget=400,
        workers=workers,
        processor=module.processor,
    )
    _fit(folder, module, data, (), every_n_steps)


def _fit(
    folder: Path, module: Any, data: Any, callbacks: Sequence[Callback], every_n_steps: int, **arguments: Any
) -> None:
    own = trainer(folder, every_n_steps=every_n_steps, callbacks=[Told(folder), *callbacks], **arguments)
    own.accumulate_grad_batches = data.accumulation(1)
    checkpoints = folder / "checkpoints"
    own.fit(module, datamodule=data, ckpt_path=checkpoints if must_have(checkpoints) else None)


def make_shards(folder: Path) -> Path:
    """Two files of lines and four tars, of questions of different lengths about pictures."""
    pictures = {}
    for number in range(40):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (number * 6, 99, 255 - number * 6)).save(file, "PNG")
        pictures[number] = file.getvalue()
    for number in range(16):
        (folder / f"{number}.png").write_bytes(pictures[number])
    for shard in range(2):
        write(folder / f"lines-{shard}.jsonl", [_chat(k) for k in range(shard * 8, shard * 8 + 8)])
    for shard in range(4):
        with tarfile.open(folder / f"tars-{shard:03}.tar", "w") as tar:
            for number in range(16 + shard * 6, 22 + shard * 6):
                for suffix, content in (("json", json.dumps(_chat(number)).encode()), ("png", pictures[number])):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def _chat(number: int) -> dict[str, Any]:
    answer = "a square " * (1 + number * 7 % 6)
    said = [{"from": "human", "value": f"<image>\nsay {number}"}, {"from": "gpt", "value": answer.strip()}]
    return {"id": f"c{number}", "image": f"{number}.png", "conversations": said}


# ---- the reference and what is compared with it --------------------------------------------------------------------


def steps_told(folder: Path) -> list[str]:
    """A line for each step that was taken, again or for the first time."""
    return (folder / "told.txt").read_text().splitlines()


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "weights" / "model.safetensors").read_bytes()).hexdigest()


def differences(folder: Path, whole: Path) -> list[str]:
    """What a run that was stopped told otherwise than the one that was not."""
    expected = {line.split()[0]: line for line in steps_told(whole)}
    odd = [line for line in steps_told(folder) if line != expected.get(line.split()[0])]
    missing = set(expected) - {line.split()[0] for line in steps_told(folder)}
    return [*odd, *(f"no step {step}" for step in missing), *(["weights"] if digest(folder) != digest(whole) else [])]


# ---- T1 ------------------------------------------------------------------------------------------------------------


def begun(work: Callable[[], None], log: Path) -> int:
    """A process of a group of its own that does the work; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        gc.freeze()
        torch.set_num_threads(1)
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    except BaseException:
        with log.open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)


def killed_until_done(folder: Path, train: Train, seconds: tuple[float, float], random_: random.Random) -> int:
    """Trains in processes that are killed until one of them comes to the end; how many were killed."""
    folder.mkdir()
    kills = 0
    while not (folder / DONE).is_file():
        pid = begun(lambda: train(folder), folder / "log.txt")
        end, status = time.monotonic() + random_.uniform(*seconds), 0
        while time.monotonic() < end and not status:
            time.sleep(0.002)
            found, code = os.waitpid(pid, os.WNOHANG)
            if found:
                status = 1 + code
        if not status:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
        assert status in (0, 1), (folder / "log.txt").read_text()[-3000:]
    return kills


def many_kills(place: Path, train: Train, count: int, seed: int) -> tuple[int, int]:
    """Kills runs until there were so many kills; how many runs that were, and how many kills.

    Each process has time for a few savings, whatever the machine is busy with.
    """
    whole = place / "whole"
    whole.mkdir()
    started = time.monotonic()
    pid = begun(lambda: train(whole), whole / "log.txt")
    _, status = os.waitpid(pid, 0)
    assert status == 0, (whole / "log.txt").read_text()[-3000:]
    lasts = time.monotonic() - started
    random_, kills, runs = random.Random(seed), 0, 0
    while kills < count:
        kills += killed_until_done(place / f"run-{runs}", train, (lasts / 6, lasts * (0.35 if FULL else 0.9)), random_)
        assert differences(place / f"run-{runs}", whole) == []
        shutil.rmtree(place / f"run-{runs}")
        runs += 1
    return runs, kills


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "shards").mkdir()
    yield make_shards(tmp_path / "shards")


CASES = {
    "0 workers": (200, lambda shards: lambda folder: toy(folder, steps=129 if FULL else 24, every_n_steps=3)),
    "2 workers": (40, lambda shards: lambda folder: toy(folder, steps=129, every_n_steps=3, workers=2)),
    "packed rows of shards": (40, lambda shards: lambda folder: packed(folder, steps=24, shards=shards)),
    "packed rows, 2 workers": (40, lambda shards: lambda folder: packed(folder, steps=24, shards=shards, workers=2)),
}


@pytest.mark.fault
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_moment(
    case: str, tmp_path: Path, shards: Path, fault_row: Callable[[str, str, str], None]
) -> None:
    count, make = CASES[case]
    if not FULL and case != "0 workers":
        pytest.skip("killed at full number by make test-faults")
    started = time.monotonic()
    runs, kills = many_kills(tmp_path, make(shards), count if FULL else 2, seed=len(case))
    told = (
        f"SIGKILLs of {runs} runs, {case}, {time.monotonic() - started:.0f} s: each step and the weights bit-identical"
    )
    fault_row("T1", f"{kills} of {kills}", told)


# ---- T2 ------------------------------------------------------------------------------------------------------------

STEPS = 12
VARIANTS = [(accumulation, validate) for accumulation in (1, 3) for validate in (0, 5)]


def stop_behind(folder: Path, step: int, variant: tuple[int, int]) -> None:
    accumulation, validate = variant
    with pytest.raises(Stopped):
        end = StopIn(step * accumulation - 1, "after")
        toy(folder, steps=STEPS, accumulation=accumulation, validate=validate, callbacks=[end])


@pytest.mark.fault
@pytest.mark.timeout(3600)
def test_stopped_behind_each_step_and_again(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    """Borders of data epochs are steps 4 and 8."""
    resumes = 0
    random_ = random.Random(5)
    for number, variant in enumerate(VARIANTS if FULL else VARIANTS[3:]):
        place = tmp_path / str(number)
        place.mkdir()
        toy(place / "whole", steps=STEPS, accumulation=variant[0], validate=variant[1])
        for first in range(1, STEPS) if FULL else (4,):
            stop_behind(place / f"{first}", first, variant)
            later = list(range(first + 1, STEPS + 1))
            chosen = [None, *random_.sample(later, min(2, len(later)))] if FULL else [8]
            for second in chosen:
                folder = place / f"{first}-{second}"
                shutil.copytree(place / f"{first}", folder)
                if second is not None:
                    stop_behind(folder, second, variant)
                    resumes += 1
                toy(folder, steps=STEPS, accumulation=variant[0], validate=variant[1])
                resumes += 1
                assert differences(folder, place / "whole") == [], (variant, first, second)
        chain = place / "chain"
        for step in range(1, STEPS) if FULL else ():
            stop_behind(chain, step, variant)
            resumes += step > 1
        if FULL:
            toy(chain, steps=STEPS, accumulation=variant[0], validate=variant[1])
            assert differences(chain, place / "whole") == [], variant
            resumes += 1
    what = "chained resumes, accumulation 1 and 3, validated or not: bit-identical"
    fault_row("T2", f"{resumes} of {resumes}", what)

"""What is in a run folder is never lost in silence: done, gone on from, or refused with the keys that differ."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from lightning import Trainer

from lightning_mllm.cli import main
from lightning_mllm.commands import beginning
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint, checkpoint_io
from lightning_mllm.training.callbacks.signals import StageSignals
from lightning_mllm.training.checkpoints import sharded_io
from tests.commands.conftest import TOY
from tests.test_cli import refused

FIT = ("fit", f"--config={TOY}", "--run_dir=run", "--stage.epochs=1", "--trainer.enable_progress_bar=false")
RECORD, LAST = Path("run/weights/stage.json"), Path("run/checkpoints/step-1/state.pt")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_finished_run_is_done_refused_or_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    main(FIT)
    before = RECORD.read_bytes()
    capsys.readouterr()
    main([*FIT, "--hardware.micro_batch=2"])
    assert capsys.readouterr().out == "run is done\n"
    sentence = refused(capsys, *FIT, "--stage.lr=1e-3", "--data.group=similar_length")
    assert "run: found weights trained under other settings (data.group, stage.lr), expected the same" in sentence
    assert "--overwrite" in sentence
    assert "run: found weights" in refused(capsys, *FIT, "--stage.lr=1e-3", "--overwrite=false")
    assert RECORD.read_bytes() == before
    (Path("run") / "test.json").write_text("{}")
    main([*FIT, "--stage.lr=1e-3", "--overwrite"])
    record = json.loads(RECORD.read_text())
    assert record["settings"]["config"]["stage"]["lr"] == 1e-3 and record["steps"] == 2
    assert not Path("run/test.json").exists() and len(Path("run/metrics.csv").read_text().splitlines()) == 3
    # The record of the run does not overwrite when it is trained from again.
    main(["fit", "--config=run/config.yaml"])
    assert capsys.readouterr().out.endswith("run is done\n")


def test_a_stopped_run_goes_on_or_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = StageCheckpoint.on_train_batch_end

    def stop(self: StageCheckpoint, *arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)
        look(self, *arguments)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(StageCheckpoint, "on_train_batch_end", stop)
        with pytest.raises(SystemExit) as stopped:
            main([*FIT, "--hardware.micro_batch=2"])
    assert stopped.value.code == 130
    told = capsys.readouterr().err
    assert "run: SIGINT ended the training after step 1; the same command goes on after step 1" in told
    assert "mllm: " not in told
    assert LAST.is_file() and not RECORD.exists()
    before = LAST.read_bytes()
    sentence = refused(capsys, *FIT, "--stage.lr=1e-3")
    assert "run: found a checkpoint written under other settings (stage.lr), expected the same" in sentence
    assert LAST.read_bytes() == before
    main(FIT)
    assert "run goes on from checkpoints/step-1" in capsys.readouterr().out
    assert json.loads(RECORD.read_text())["steps"] == 2
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 3


def test_only_training_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--overwrite" in refused(capsys, "test", *FIT[1:], "--overwrite")


def killed(*arguments: str, after: int) -> None:
    """`mllm`, in a process that is killed in the first micro-batch behind optimizer step `after`."""
    pid = os.fork()
    if pid == 0:
        begin = StageCheckpoint.on_train_batch_start

        def kill(self: StageCheckpoint, trainer: Trainer, *more: object) -> None:
            begin(self, trainer, *more)  # pyright: ignore[reportArgumentType]
            if trainer.global_step == after:
                checkpoint_io(trainer).wait()
                os.kill(os.getpid(), signal.SIGKILL)

        StageCheckpoint.on_train_batch_start = kill  # pyright: ignore
        try:
            main(arguments)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_a_killed_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    fit = [*FIT, "--stage.epochs=7", "--checkpoint_every=5"]
    killed(*fit, after=11)
    assert Path("run/checkpoints/step-10").is_dir()
    with Path("run/metrics.csv").open("a") as file:
        file.write("12,0.12")  # a line that was cut
    main(fit)
    told = capsys.readouterr().out
    assert "10 of 14 steps are done, step 11 is next" in told
    steps = [line.split(",")[0] for line in Path("run/metrics.csv").read_text().splitlines()]
    assert steps == ["step", *map(str, range(1, 15))]
    assert json.loads(RECORD.read_text())["steps"] == 14


def test_damaged_metrics_and_settings_of_a_stopped_run(capsys: pytest.CaptureFixture[str]) -> None:
    fit = [*FIT, "--checkpoint_every=1"]
    killed(*fit, after=1)
    contents_of = {
        "metrics.csv": [
            b"step,a\n1,x\n",
            bytes(range(128, 256)),
            b"loss\n1\n",
            b"step,a\n1\n",
            b'step,a\n1,"2\n\x00"\n',
        ],
        "config.yaml": [b"", b"model: {", bytes(range(128, 256)), b"[1, 2]", b"model: 1\n"],
        "identity.json": [b"", b'{"format": 1', bytes(range(128, 256)), b"[]", b'{"format": 1, "files": []}'],
    }
    for name, contents in contents_of.items():
        file = Path("run", name)
        good = file.read_bytes()
        for content in contents if os.environ.get("MLLM_FULL") else contents[1:2]:
            file.write_bytes(content)
            sentence = refused(capsys, *fit)
            assert f"run/{name}" in sentence and "expected" in sentence and ";" in sentence, content
            assert file.read_bytes() == content
        file.write_bytes(good)
    main(fit)
    assert json.loads(RECORD.read_text())["steps"] == 2


@pytest.mark.parametrize(
    "names", [("notes.txt",), (".bashrc", "mail/1"), ("weights/mine.safetensors",), ("config.yaml",)]
)
def test_a_foreign_folder_is_refused(names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for name in names:
        Path("run", name).parent.mkdir(parents=True, exist_ok=True)
        Path("run", name).write_text("mine")
    for more in ((), ("--overwrite",)):
        sentence = refused(capsys, *FIT, *more)
        assert "run" in sentence and "name another" in sentence
        found = {str(each.relative_to("run")) for each in Path("run").rglob("*") if each.is_file()}
        assert found == set(names) and all(Path("run", name).read_text() == "mine" for name in names)


def test_overwriting_leaves_what_no_run_wrote() -> None:
    Path("run").mkdir()
    Path("run/slurm.out").write_text("what a launcher said")
    main(FIT)
    kept = ["weights/notes.txt", "checkpoints/notes.txt", "notes.txt", "wandb/debug.log"]
    for name in kept:
        Path("run", name).parent.mkdir(exist_ok=True)
        Path("run", name).write_text("mine")
    Path("run/weights/model-00001-of-00002.safetensors").write_text("of an earlier run")
    main([*FIT, "--overwrite", "--stage.lr=1e-3"])
    assert all(Path("run", name).read_text() == "mine" for name in [*kept[:3], kept[3]])
    assert not Path("run/weights/model-00001-of-00002.safetensors").exists()


def test_a_stage_that_ends_without_weights_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/.config.yaml.0123.writing").write_text("of a killed process")
    with pytest.raises(SystemExit) as ended:
        main([*FIT, "--trainer.max_time=00:00:00:00"])
    assert ended.value.code == 75
    assert "run: found no weights at the end of the training" in capsys.readouterr().err
    assert not Path("run/.config.yaml.0123.writing").exists()
    main(FIT)
    assert json.loads(RECORD.read_text())["steps"] == 2


def test_a_fast_dev_run_leaves_a_stopped_run_and_a_finished_one_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def content() -> dict[Path, bytes]:
        return {each: each.read_bytes() for each in Path("run").rglob("*") if each.is_file()}

    main(FIT)
    for finished in (True, False):
        if not finished:
            RECORD.unlink()
        before = content()
        main([*FIT, "--trainer.fast_dev_run=true"])
        assert "fast_dev_run ended the training after step 1 of 1" in capsys.readouterr().out
        assert content() == before


def test_what_overwrites_removes_nothing_before_the_data_were_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*given: object, **more: object) -> dict[str, object]:
        raise ConfigError("data.json: cannot read the file")

    main(FIT)
    monkeypatch.setattr(beginning, "identity_of", unreadable)
    assert "data.json: cannot read the file" in refused(capsys, *FIT, "--overwrite")
    assert RECORD.is_file() and Path("run/checkpoints/step-2/state.pt").is_file()


def test_a_signal_on_a_full_disk_ends_by_the_signal_and_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = StageSignals.on_train_start

    def send(self: StageSignals, *arguments: object) -> None:
        begin(self, *arguments)  # pyright: ignore[reportArgumentType]
        signal.raise_signal(signal.SIGTERM)

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(StageSignals, "on_train_start", send)
    monkeypatch.setattr(sharded_io, "write", full)
    with pytest.raises(SystemExit) as stopped:
        main([*FIT, "--checkpoint_every=100"])
    told = capsys.readouterr().err
    assert stopped.value.code == 143
    assert "run/checkpoints/step-1: cannot write" in told and "No space left on device" in told
    assert "SIGTERM ended the training after step 1; there is no checkpoint" in told


def test_what_was_predicted_before_a_stage_trains_is_no_foreign_folder(capsys: pytest.CaptureFixture[str]) -> None:
    (Path("run") / "tensorboard").mkdir(parents=True)
    Path("run/answers.jsonl").write_text("{}\n")
    main([*FIT, "--overwrite"])
    assert RECORD.is_file() and Path("run/answers.jsonl").read_text() == "{}\n"
    Path("other").mkdir()
    Path("other/answers.txt").write_text("")
    assert "which is no folder of a run" in refused(capsys, *FIT, "--run_dir=other", "--overwrite")

"""Whole runs whose folder or disk comes to harm: found before the net is built, or told without a loss."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lightning_mllm.cli import main
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from lightning_mllm.training.checkpoints.finding import number_of
from lightning_mllm.training.module import MultimodalModule
from tests.commands.conftest import TOY
from tests.test_cli import experiment, refused  # noqa: F401
from tests.training.checkpoints.damages import flip, shard
from tests.weights.disks import NOBODY, fill, in_child, small_disk

QUIET = ("--trainer.enable_progress_bar=false", "--checkpoint_every=1", "--stage.epochs=3")
FIT = ("fit", f"--config={TOY}", "--run_dir=run", *QUIET)
STOP = 4
FULL = bool(os.environ.get("MLLM_FULL"))


class Stop(Exception):
    """Stands for whatever ends a process."""


def stopped(at: int = STOP, *more: str) -> None:
    """A run of six steps that ends after some, with its checkpoints on the disk."""
    finish = StageCheckpoint.on_train_batch_end

    def stop(self: StageCheckpoint, trainer: Any, *arguments: Any) -> None:
        finish(self, trainer, *arguments)
        if trainer.global_step == at:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCheckpoint, "on_train_batch_end", stop)
        with pytest.raises(Stop):
            main([*FIT, *more])


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def begun(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """`run`, stopped after step 4 of 6; `whole` was not."""
    kept = request.config.stash.get(KEPT, None)
    if kept is None:
        kept = request.config.stash[KEPT] = tmp_path_factory.mktemp("begun")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(kept)
            main([*FIT, "--run_dir=whole"])
            stopped()
    for name in ("run", "whole"):
        shutil.copytree(kept / name, tmp_path / name)
    return tmp_path / "run"


KEPT = pytest.StashKey[Path]()


def steps(run: Path) -> list[int]:
    return sorted(number_of(each.name) or 0 for each in (run / "checkpoints").glob("step-*"))


def same_end() -> None:
    one, two = (load_file(f"{name}/weights/model.safetensors") for name in ("whole", "run"))
    assert all(bool((one[name] == two[name]).all()) for name in one)


# ---- damaged checkpoints ---------------------------------------------------------------------------------------------


def test_the_newest_whole_one_leads_to_the_same_end(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert steps(begun) == [3, 4]
    flip(shard(begun / "checkpoints/step-4"), -1)
    capsys.readouterr()
    main(FIT)
    out = capsys.readouterr().out
    assert "run/checkpoints/step-4: skipped (shard-" in out and "1 steps are lost, step-3 is used\n" in out
    assert "run goes on from checkpoints/step-3" in out and "run: 3 of 6 steps are done" in out
    assert steps(begun) == [5, 6]
    same_end()


def test_without_a_whole_one_a_run_never_begins_anew(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = (begun / "metrics.csv").read_bytes()
    for each in (begun / "checkpoints").iterdir():
        flip(shard(each), -1)
    told = refused(capsys, *FIT)
    assert "run/checkpoints: found no whole checkpoint, expected one to go on from; put one back from a backup" in told
    shutil.rmtree(begun / "checkpoints/step-4")
    assert "found no whole checkpoint" in refused(capsys, *FIT)
    shutil.rmtree(begun / "checkpoints")
    told = refused(capsys, *FIT)
    assert "found no checkpoint, expected that of step 4, which checkpoints.json says was written; put one" in told
    assert (begun / "metrics.csv").read_bytes() == metrics
    main([*FIT, "--overwrite"])
    same_end()


def test_the_best_weights_are_checked_too(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(begun)
    best = "--trainer.callbacks=[{class_path: lightning_mllm.training.callbacks.best.BestWeights, "
    best += "init_args: {monitor: val/exact_match, mode: max}}]"
    source = "{class_path: tests.training.data.Squares, init_args: {samples: 4}}"
    validated = f"--data.val={{squares: {{source: {source}, task: exact}}}}"
    more = (best, validated, "--stage.validate_every=2")
    stopped(STOP, *more)
    (kept,) = (begun / "checkpoints").glob("best-*")
    flip(shard(kept), -1)
    told = refused(capsys, *FIT, *more)
    assert f"{kept.relative_to(Path.cwd())}: found damaged weights (shard-" in told and "put one back" in told


# ---- what Lightning would load ---------------------------------------------------------------------------------------


def test_files_that_lightning_would_load_are_ignored_by_name(
    begun: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = {"JOB_NAME": "train", "JOB_ID": "7", "NNODES": "1", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in {**slurm, "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    foreign = ("hpc_ckpt_3.ckpt", "last.ckpt", "on_exception.ckpt", "checkpoints/last.ckpt")
    other = Path("other")
    for run in (begun, other):
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in foreign:
            (run / name).write_bytes(b"a pickle")
    shutil.copytree(begun / "checkpoints/step-4", other / "hpc_ckpt_4.ckpt")
    capsys.readouterr()
    main(FIT)
    out = capsys.readouterr().out
    assert all(f"run/{name} is ignored: it is no checkpoint of ours" in out for name in foreign)
    assert "run goes on from checkpoints/step-4" in out
    same_end()
    (other / "notes.txt").write_text("mine")
    assert "which is no folder of a run" in refused(capsys, *FIT, "--run_dir=other")
    (other / "notes.txt").unlink()
    raising = "{class_path: lightning.pytorch.callbacks.OnExceptionCheckpoint, init_args: {dirpath: other}}"
    main([*FIT, "--run_dir=other", f"--trainer.callbacks=[{raising}]"])
    out = capsys.readouterr().out
    assert "other/hpc_ckpt_4.ckpt is ignored" in out and "steps are done" not in out
    assert (other / "weights/stage.json").is_file()


# ---- full disks ------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_told_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "small", 200_000) as mounted:
        if not mounted:
            pytest.skip("nothing may be mounted here")
        fill(tmp_path / "small", 40_000)
        told = refused(capsys, *FIT, "--run_dir=small/run", "--stage.name=instruct")
        assert "small/run/checkpoints: found " in told and " bytes free, expected " in told
        assert "for 3 checkpoints of " in told and " bytes of weights" in told
        assert not Path("small/run/checkpoints").exists()
        fill(tmp_path / "small", 130_000)
        main([*FIT, "--run_dir=small/run", "--stage.name=instruct", "--checkpoint_every=0"])
        assert Path("small/run/weights/stage.json").is_file()


@pytest.mark.skipif(not FULL, reason="make test-faults")
@pytest.mark.fault
def test_a_disk_that_fills_up_while_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault_row: Callable[[str, str, str], None]
) -> None:
    """After a step, with another number of bytes left each time; then there is room, and the same command goes on."""
    main([*FIT, "--run_dir=whole"])
    one = sum(os.stat(each).st_blocks * 512 for each in Path("whole/checkpoints/step-6").iterdir())
    finish, left = StageCheckpoint.on_train_batch_end, [0]

    def fill_up(self: StageCheckpoint, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == 3:
            fill(tmp_path / "small", left[0])
        finish(self, trainer, *arguments)

    counts = 0
    with small_disk(tmp_path / "small", 1_500_000) as mounted:
        if not mounted:
            pytest.skip("nothing may be mounted here")
        for left[0] in (0, 4096, one // 4, one // 2, one * 3 // 4) if FULL else (one // 2,):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(StageCheckpoint, "on_train_batch_end", fill_up)
                told = refused(capsys, *FIT, "--run_dir=small/run")
            assert ": cannot write" in told and "free (No space left on device)" in told, told
            found = steps(Path("small/run"))
            assert found and found[-1] in (1, 2, 3, 4, 5), found
            assert not list(Path("small/run").rglob("*.writing")) and not list(Path("small/run").rglob(".*.part"))
            (tmp_path / "small/filler").unlink()
            main([*FIT, "--run_dir=small/run"])
            assert f"{found[-1]} of 6 steps are done" in capsys.readouterr().out
            shutil.rmtree("run", ignore_errors=True)
            shutil.move("small/run", "run")
            same_end()
            counts += 1
    fault_row("T5", f"{counts} of {5 if FULL else 1}", "runs whose disk fills up in step 3: exit 2, then the same end")


@pytest.mark.parametrize("file", ["config.yaml", "metrics.csv", "stage.json", "model.safetensors", "test.json"])
def test_each_file_of_a_run_is_named_when_the_disk_is_full(
    file: str, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the moment at which this file is written."""
    from lightning_mllm.weights import files

    real = files._beside

    def beside(path: Path) -> Path:
        return Path("/dev/full") if path.name == file else real(path)

    test = file == "test.json"
    run = "whole" if test else "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "_beside", beside)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        told = refused(capsys, "test" if test else "fit", *FIT[1:], f"--run_dir={run}")
    assert f"{run}/{'weights/' if file in ('stage.json', 'model.safetensors') else ''}{file}: cannot write" in told
    assert "are free (No space left on device)" in told


# ---- folders that cannot be written----------------------------------------------------------------------------------


def sealed(*folders: str) -> Callable[[], None]:
    def seal() -> None:
        for folder in folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder).chmod(0o555)

    return seal


def opened(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder).chmod(0o777)


def taken(name: str) -> Callable[[], None]:
    def take() -> None:
        opened("run")
        Path(name).write_text("taken")

    return take


def dangling(name: str) -> Callable[[], None]:
    def link() -> None:
        if name != "run":
            opened("run")
        Path(name).symlink_to("gone")

    return link


UNWRITABLE: dict[str, Callable[[], object]] = {
    "the folder above the run": sealed("."),
    "the run folder": sealed("run"),
    "the folder of checkpoints": lambda: [opened("run"), sealed("run/checkpoints")()],
    "the folder of weights": lambda: [opened("run"), sealed("run/weights")()],
    "a file as run folder": lambda: [opened("."), Path("run").write_text("taken")],
    "a file as folder of checkpoints": taken("run/checkpoints"),
    "a file as folder of weights": taken("run/weights"),
    "a link to nowhere as run folder": lambda: [opened("."), dangling("run")()],
    "a link to nowhere as folder of checkpoints": dangling("run/checkpoints"),
    "a link to nowhere as folder of weights": dangling("run/weights"),
    "a pipe as metrics.csv": lambda: [opened("run"), os.mkfifo("run/metrics.csv")],
    "a folder as config.yaml": lambda: [opened("run"), opened("run/config.yaml")],
}


@pytest.mark.fault
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_folders_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_row: Callable[[str, str, str], None]
) -> None:
    monkeypatch.setattr(MultimodalModule, "build", lambda *arguments: os.write(2, b"BUILT"))
    for parent in (*tmp_path.parents, tmp_path):
        parent.chmod(parent.stat().st_mode | 0o055)
    tried = dict(list(UNWRITABLE.items())[:: 1 if FULL else 3])
    for number, (kind, make) in enumerate(tried.items()):
        place = tmp_path / str(number)
        place.mkdir(mode=0o755)
        monkeypatch.chdir(place)
        make()
        code, said = in_child(lambda: main(FIT), user=NOBODY)
        assert code == 2, (kind, said)
        (sentence,) = said.splitlines()
        assert "run_dir: " in sentence and "BUILT" not in said, (kind, said)
        assert "expected" in sentence, sentence
    with small_disk(tmp_path / "sealed", 65536, "ro"), small_disk(tmp_path / "full", 65536) as mounted:
        if mounted:
            fill(tmp_path / "full", 0)
            for name in ("sealed", "full"):
                code, said = in_child(lambda name=name: main([*FIT, f"--run_dir={tmp_path / name}/run"]))
                assert code == 2 and "cannot be written" in said and "BUILT" not in said, said
    count = len(tried) + 2 * mounted
    fault_row("T6", f"{count} of {count}", "folders that cannot be written: refused before the net is built, 0 silent")


def test_no_stage_trains_where_a_later_one_could_not(
    experiment: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("runs/colours/toy").mkdir(parents=True)
    Path("runs/colours/toy/tune").symlink_to("gone")
    told = refused(capsys, "run", "experiments/colours/toy")
    assert "run_dir: " in told and "colours/toy/tune: found a link to what is not there, expected a folder" in told
    assert not Path("runs/colours/toy/begin").exists()


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_that_a_stage_starts_from(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ("--run_dir=next", "--stage.name=instruct")
    weights = Path("whole/weights/model.safetensors")
    flip(weights, -1)
    told = refused(capsys, *FIT, *start, "--runs=.", "--stage.init_from={./whole: 1.0}")
    assert "whole/weights: the weights are not those that stage.json names, they changed or were cut" in told
    save_file({}, "none.safetensors", metadata={"format": "pt"})
    told = refused(capsys, *FIT, *start, "--stage.init_from={./none.safetensors: 1.0}")
    assert "none.safetensors: found a file without tensors, expected some" in told
    told = refused(capsys, "test", f"--config={TOY}", "--run_dir=whole")
    assert "whole/weights: the weights are not those that stage.json names" in told

"""`mllm run` that a signal ends in any of its parts ends with the signal's code, and the same command goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_mllm.evaluation.scores import Scores
from tests.commands.test_run_checks import HARDWARE, NET, STAGE, TEST
from tests.training.callbacks.signalled import mllm
from tests.training.callbacks.test_signals import FULL, before_micro_batch, same
from tests.training.data import Squares


def experiment(place: Path) -> Path:
    """Two stages, the last of which is tested."""
    folder = place / "experiments" / "toy"
    (folder.parent / "_hardware").mkdir(parents=True)
    folder.mkdir()
    (folder.parent / "_hardware" / "cpu.yaml").write_text(HARDWARE)
    (folder / "net.yaml").write_text(NET)
    (folder / "align.yaml").write_text(STAGE.format(name="align", sources="{}", test=""))
    last = STAGE.format(name="instruct", sources="{align: 1.0}", test=TEST.format(task="exact"))
    (folder / "instruct.yaml").write_text(last)
    return folder


def at(kind: type, method: str, name: str) -> Callable[[], None]:
    """Sends a signal where a method is called."""

    def prepare() -> None:
        inner = getattr(kind, method)

        def outer(*given: object, **named: object) -> object:
            signal.raise_signal(getattr(signal, name))
            return inner(*given, **named)

        setattr(kind, method, outer)

    return prepare


@pytest.mark.skipif(not FULL, reason="make test-faults")
@pytest.mark.fault
def test_a_run_that_is_stopped_in_each_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_row: Callable[[str, str, str], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, log = experiment(tmp_path), tmp_path / "log"
    run, instruct = tmp_path / "runs/toy", tmp_path / "runs/toy/instruct"

    def stopped(before: Callable[[], object]) -> tuple[int, str]:
        log.unlink(missing_ok=True)
        return mllm(log, "run", str(folder), before=before), log.read_text()

    assert stopped(at(Squares, "load", "SIGTERM")) == (143, "mllm: stopped by SIGTERM\n")
    assert not run.exists()
    code, said = stopped(before_micro_batch(2, lambda: signal.raise_signal(signal.SIGTERM)))
    assert code == 143 and "runs/toy/align: SIGTERM ended the training after step 2" in said and "report" not in said
    code, said = stopped(at(Scores, "update", "SIGINT"))
    assert code == 130 and said.endswith("mllm: stopped by SIGINT\n") and "report" not in said
    assert (instruct / "weights/stage.json").is_file() and not (instruct / "test.json").exists()
    if FULL:
        code, said = stopped(lambda: None)
        assert code == 0 and "runs/toy/instruct is done" in said
        assert (instruct / "test.json").is_file() and (run / "report.html").is_file()
        assert mllm(log, "run", str(folder), "--runs=whole") == 0
        assert same(instruct, tmp_path / "whole/toy/instruct")
    fault_row("T3", "3 of 3", "mllm run signalled while it reads, trains and tests: exit code, no report, same bits")

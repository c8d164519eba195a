"""Two stages tracked offline, one of them killed, and read back from what W&B wrote; and servers that are no help."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.commands.launch import main
from lightning_mllm.commands.tracked_export import track_export
from lightning_mllm.export.record import Origin
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.loggers.wandb_file import files_of, history, records, values
from lightning_mllm.training.loggers.wandb_tracker import WandbTracker
from tests.toy import Toy
from tests.training.loggers.test_wandb_account import KEY, KNOWN, server

TOY = ["--config", str(Path(__file__).parents[2] / "toy.yaml"), "--trainer.accelerator=cpu"]
SQUARES = "source: {class_path: tests.training.data.Squares, init_args: {samples: 6}}, task: exact"
TRACKED = [*TOY, "--stage.validate_every=2", f"--data.val={{squares: {{{SQUARES}}}}}", "--checkpoint_every=4"]
ON_TIME = ("throughput/", "memory/")
"""What is not the same when a step is taken again."""


class Tracked:
    """One run of W&B, over all of its files."""

    def __init__(self, run_dir: Path) -> None:
        folder = run_dir / "wandb"
        self.id = json.loads((folder / "tracked.json").read_text())["id"]
        self.files = files_of(folder, self.id)
        self.history = history(folder, self.id)
        self.runs, self.tables = list[Any](), dict[str, list[dict[str, Any]]]()
        self.config, self.summary, self.artifacts = dict[str, Any](), dict[str, Any](), list[Any]()
        for record in (each for file in self.files for each in records(file)):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.runs.append(record.run)
                self.config |= values(record.run.config.update)
            elif kind == "config":
                self.config |= values(record.config.update)
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "artifact":
                self.artifacts.append(record.artifact)
        for each in self.artifacts:
            if each.type == "run_table":
                entry = next(entry for entry in each.manifest.contents if entry.path.endswith(".table.json"))
                table = json.loads(Path(entry.local_path).read_text())
                assert Path(entry.local_path).is_relative_to(folder)
                name = entry.path.removesuffix(".table.json")
                self.tables.setdefault(name, []).append(table)


def in_a_child_that_is_killed(arguments: Sequence[str], run_dir: Path) -> None:
    """In step 8, once what W&B has written is ahead of the checkpoint of step 4."""
    forward = Toy.forward

    def dies(self: Toy, batch: Any) -> Any:
        if self.training and self.trainer.global_step == 7:
            id = json.loads((run_dir / "wandb/tracked.json").read_text())["id"]
            for _ in range(200):
                if history(run_dir / "wandb", id).keys() >= {1, 2, 3, 4, 5}:
                    break
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, batch)

    Toy.forward = dies  # pyright: ignore[reportAttributeAccessIssue]
    main(list(arguments))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        first = ["fit", *TRACKED, f"--runs={folder}", f"--run_dir={folder}/toy/align", "--stage.epochs=3"]
        second = [*first[:-2], f"--run_dir={folder}/toy/instruct", "--stage.name=instruct", "--stage.epochs=4"]
        second += ['--stage.init_from={"align": 1.0}']
        main(first)
        child = multiprocessing.get_context("fork").Process(
            target=in_a_child_that_is_killed, args=(second, folder / "toy/instruct")
        )
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        kept = '{"class_path": "wandb", "init_args": {"log_weights": true, "log_checkpoints": true}}'
        main([*second, f"--trainer.logger={kept}"])
        main(["test", *second[1:]])
    return folder


def test_two_stages_are_two_runs_of_one_group(runs: Path) -> None:
    align, instruct = Tracked(runs / "toy/align"), Tracked(runs / "toy/instruct")
    assert align.id != instruct.id
    for stage, tracked in (("align", align), ("instruct", instruct)):
        for run in tracked.runs:
            assert (run.run_group, run.display_name, run.job_type) == ("toy", f"toy/{stage}", "fit")
            assert run.run_id == tracked.id


def test_the_whole_configuration_and_every_logged_key(runs: Path) -> None:
    align = Tracked(runs / "toy/align")
    config = align.config
    assert config["model"]["class_path"] == "tests.toy.Toy"
    assert config["model"]["init_args"]["language"]["init_args"]["width"] == 24
    assert config["stage"]["lr"] == 0.02 and config["trainer"]["precision"] == "32-true"
    assert [row["part"] for row in config["freeze_table"]] == ["vision", "connector", "language"]
    assert {"model", "data", "stage", "hardware", "trainer", "seed_everything", "run_dir"} <= set(config)
    known = MetricsCsv(str(runs / "toy/align/metrics.csv")).rows()
    assert list(known) == [1, 2, 3, 4, 5, 6]
    for step, row in known.items():
        assert row == pytest.approx({name: align.history[step][name] for name in row}), step
    for name in ("train/loss", "train/language", "train/lr", "train/gradient_norm", "throughput/tokens_per_second"):
        assert name in known[1]
    for name in ("throughput/images_per_second", "throughput/data_wait", "memory/host_gb"):
        assert name in known[1]
    assert "val/exact_match" in known[6]


def test_pictures_with_question_answer_reference_and_score_at_several_times(runs: Path) -> None:
    align = Tracked(runs / "toy/align")
    tables = align.tables["val/exact_answers"]
    assert len(tables) == 3
    for step, table in zip((2, 4, 6), tables, strict=True):
        assert table["columns"] == ["step", "id", "picture", "question", "answer", "reference", "score"]
        assert len(table["data"]) == 6
        for row in table["data"]:
            assert row[0] == step and row[2]["_type"] == "image-file" and row[5] in ("red", "green", "blue", "grey")
    assert [row[1] for row in tables[0]["data"]] == [row[1] for row in tables[2]["data"]]
    assert all("val/exact_answers" in align.history[step] for step in (2, 4, 6))


def test_scores_with_intervals_and_their_blind_twins_are_in_the_summary(runs: Path) -> None:
    instruct = Tracked(runs / "toy/instruct")
    scores = json.loads((runs / "toy/instruct/test.json").read_text())["scores"]
    assert set(scores) == {"exact_match", "exact_match_blind"}
    for name, found in scores.items():
        assert instruct.summary[f"test/{name}"] == found["value"]
        assert instruct.summary[f"test/{name}/low"] == found["low"]
        assert instruct.summary[f"test/{name}/high"] == found["high"]
    assert instruct.tables["test/exact_answers"] and instruct.tables["test/exact_blind_answers"]


def test_a_killed_run_has_the_steps_of_one_that_was_not(runs: Path) -> None:
    killed, table = Tracked(runs / "toy/instruct"), MetricsCsv(str(runs / "toy/instruct/metrics.csv")).rows()
    first = [each.history.step.num for each in records(killed.files[0]) if each.WhichOneof("record_type") == "history"]
    assert max(first) > 4
    assert len(killed.files) == 3  # before the kill, after it, and the test
    assert list(table) == list(killed.history) == [1, 2, 3, 4, 5, 6, 7, 8]
    for step, row in table.items():
        found = {name: value for name, value in killed.history[step].items() if not name.startswith((*ON_TIME, "_"))}
        pictures = {name: found.pop(name) for name in list(found) if "answers" in name}
        assert found == pytest.approx({name: value for name, value in row.items() if not name.startswith(ON_TIME)})
        assert len(pictures) == (2 if step % 2 == 0 else 0)
    steps = [
        record.history.step.num
        for file in killed.files
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]
    assert steps == sorted(set(steps))


def test_rows_that_a_killed_process_had_not_written_are_taken_from_the_table(tmp_path: Path) -> None:
    def goes_on(step: int, *more: int) -> WandbTracker:
        tracker = WandbTracker(mode="offline")
        tracker.set_stage(tmp_path / "align", "fit", "x")
        tracker.go_on(step, {each: {"train/loss": each / 2} for each in (1, 2, 3, 4)})
        for each in more:
            tracker.log_metrics({"train/loss": each / 2}, each)
        tracker.finalize("success")
        return tracker

    first, second, third = goes_on(2), goes_on(3, 3, 4, 5), goes_on(3, 4, 5, 6)
    assert first.version == second.version == third.version
    folder = tmp_path / "align/wandb"
    steps = [
        [record.history.step.num for record in records(file) if record.WhichOneof("record_type") == "history"]
        for file in files_of(folder, third.version)
    ]
    assert steps == [[1, 2], [3, 4, 5], [6]]
    assert {step: row["train/loss"] for step, row in history(folder, third.version).items()} == {
        step: step / 2 for step in range(1, 7)
    }


def test_weights_are_artifacts_that_name_what_they_come_from(runs: Path) -> None:
    found = [each for each in Tracked(runs / "toy/instruct").artifacts if each.type == "stage-weights"]
    assert [(each.name, each.use_after_commit) for each in found] == [("toy-align", True), ("toy-instruct", False)]
    for each in found:
        assert {entry.path for entry in each.manifest.contents} == {"model.safetensors", "stage.json"}
        stage = each.name.removeprefix("toy-")
        assert all(Path(entry.local_path).is_relative_to(runs / "toy" / stage) for entry in each.manifest.contents)


def test_the_checkpoint_that_training_ends_with_is_an_artifact(runs: Path) -> None:
    (found,) = [each for each in Tracked(runs / "toy/instruct").artifacts if each.type == "checkpoint"]
    assert found.name == "toy-instruct-checkpoint" and json.loads(found.metadata) == {"step": 8}
    assert found.manifest.contents and not found.use_after_commit


def test_an_export_is_made_out_of_the_weights_of_its_stage(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for stage, tracked in (("align", False), ("instruct", True)):
        track_export(Origin.of(runs / "toy" / stage), tmp_path)
        assert (runs / "toy" / stage / "export").exists() == tracked
    found = Tracked(runs / "toy/instruct/export")
    assert [(run.run_group, run.job_type) for run in found.runs] == [("toy", "export")]
    kinds = [(each.name, each.type, each.use_after_commit) for each in found.artifacts]
    assert kinds == [("toy-instruct", "stage-weights", True), ("toy-instruct-export", "export", False)]
    assert [entry.path for entry in found.artifacts[1].manifest.contents] == ["config.json"]


@pytest.mark.parametrize("statuses", [(401,), (200, 500), (200, None)])
def test_a_server_that_is_no_help_costs_no_run(
    statuses: tuple[int | None, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "online")
    with server(*statuses, body=KNOWN) as address:  # some take the key, and then have no run to give
        monkeypatch.setenv("WANDB_BASE_URL", address)
        tracker = WandbTracker(timeout=1)
        tracker.set_stage(tmp_path / "x" / "align", "fit", "x")
        tracker.log_metrics({"train/loss": 2.0}, 1)
        tracker.finalize("success")
    assert history(tmp_path / "x/align/wandb", tracker.version)[1]["train/loss"] == 2.0
    printed, errors = capfd.readouterr()
    assert printed.startswith("W&B: ") and printed.count("\n") == 1 and "tracked offline; wandb sync" in printed
    assert not errors


def closed() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def talking(said: bytes, every: float) -> Iterator[str]:
    """A server of no protocol: it says this a byte at a time, for ever."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while not done.wait(every):
                    connection.sendall(said)

        def listen() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        done.set()


SERVERS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "never answers": lambda: server(None),
    "refuses the connection": lambda: nullcontext(closed()),
    "a byte in a while": lambda: talking(b"H", 0.3),
    "401": lambda: server(401),
    "403": lambda: server(403),
    "a wrong key": lambda: server(200, body=b'{"data": {"viewer": null}}'),
    "error 500": lambda: server(500),
    "429": lambda: server(429),
    "a page to sign in": lambda: server(200, body=b"<html>sign in</html>"),
    "no such name": lambda: nullcontext("http://nowhere.invalid"),
    "another protocol": lambda: talking(b"220 mail\r\n", 0.01),
    "no https": lambda: nullcontext(closed().replace("http:", "https:")),
    "a key, and then errors": lambda: server(200, 500, body=KNOWN),
    "a key, and then nothing": lambda: server(200, None, body=KNOWN),
    "no run for the key": lambda: server(200, 403, body=KNOWN),
}
NO_KEY = "no key"


@pytest.mark.fault
def test_training_begins_whatever_the_server_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault_row: Callable[[str, str, str], None],
) -> None:
    full = bool(os.environ.get("MLLM_FULL"))
    kinds = [*SERVERS, NO_KEY] if full else ["a byte in a while", NO_KEY]
    monkeypatch.setenv("WANDB_MODE", "online")
    wrong, longest = list[str](), 0.0
    for number, kind in enumerate(kinds):
        monkeypatch.setenv("WANDB_API_KEY", "" if kind == NO_KEY else KEY)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with SERVERS.get(kind, lambda: nullcontext("http://127.0.0.1:1"))() as address:
            monkeypatch.setenv("WANDB_BASE_URL", address)
            tracker, began = WandbTracker() if full else WandbTracker(timeout=0.5), time.monotonic()
            tracker.set_stage(tmp_path / str(number) / "align", "fit", "x")
            tracker.log_metrics({"train/loss": 2.0}, 1)
            longest = max(longest, time.monotonic() - began)
            tracker.finalize("success")
        kept = history(tmp_path / str(number) / "align/wandb", tracker.version).get(1, {}).get("train/loss") == 2.0
        printed = capfd.readouterr()
        told = printed.out.count("\n") == 1 and "tracked offline; wandb sync" in printed.out and not printed.err
        if not (kept and told and KEY not in printed.out):
            wrong.append(f"{kind}: {printed}")
    fault_row("T25", f"{len(kinds) - len(wrong)} of {len(kinds)}", f"servers of no help; after {longest:.0f} s offline")
    assert not wrong and longest < 30, (longest, wrong)


def test_what_a_service_that_died_would_have_kept_is_kept_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = WandbTracker()
    tracker.set_stage(tmp_path / "align", "fit", "x")

    class Dead:
        offline = False

        def log(self, *_: object, **__: object) -> None:
            raise ConnectionResetError("Connection lost")

    tracker._run = Dead()
    for step in (1, 2):
        tracker.log_metrics({"train/loss": 2.0}, step)
    tracker.finalize("success")
    printed = capsys.readouterr().out
    assert printed.startswith("W&B: failed (ConnectionResetError: Connection lost), tracked offline; wandb sync ")
    assert printed.count("\n") == 1 and history(tmp_path / "align/wandb", tracker.version).keys() == {1, 2}


def test_a_tracker_that_fails_ends_the_tracking_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = WandbTracker(mode="offline")
    tracker.set_stage(tmp_path / "align", "fit", "x")
    monkeypatch.setattr(WandbTracker, "_init", lambda *_: 1 / 0)
    for step in (1, 2):
        tracker.log_metrics({"train/loss": 2.0}, step)
    tracker.finalize("success")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "ZeroDivisionError" in printed and "not tracked any longer" in printed

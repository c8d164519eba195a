"""`mllm run` reads what all stages learn and are scored on before the first one trains."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from lightning_mllm.cli import main
from lightning_mllm.commands.launch import CheckedCLI, compose
from lightning_mllm.commands.run import overrides_of
from tests.test_cli import refused

NET = """\
model:
  class_path: tests.toy.Toy
  init_args:
    connector: {in_width: 16, out_width: 24}
"""
STAGE = """\
stage: {{name: {name}, init_from: {sources}, global_batch: 8, epochs: 2, lr: 1.0e-2, warmup: 0}}
data:
  class_path: data_modules.module.InstructionDataModule
  init_args:
    train:
      squares: {{class_path: tests.training.data.Squares, init_args: {{samples: 16}}}}
{test}"""
TEST = """\
    test:
      mine:
        source: {{class_path: tests.training.data.Squares, init_args: {{samples: 6}}}}
        task: {task}
"""
HARDWARE = """\
hardware: {micro_batch: 4}
trainer: {accelerator: cpu, devices: 1, enable_progress_bar: false}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "experiments" / "toy"
    own.mkdir(parents=True)
    (own.parent / "_hardware").mkdir()
    (own.parent / "_hardware" / "cpu.yaml").write_text(HARDWARE)
    (own / "net.yaml").write_text(NET)
    (own / "align.yaml").write_text(STAGE.format(name="align", sources="{}", test=""))
    return own


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("exakt", "data.test.mine: task is 'exakt', expected one of"),
        ("pope", "data.test.mine: sample s0: pope: found the references ['red'], expected one, 'yes' or 'no'"),
    ],
)
def test_a_wrong_set_of_the_last_stage_is_refused_before_the_first_trains(
    folder: Path, task: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = STAGE.format(name="instruct", sources="{align: 1.0}", test=TEST.format(task=task))
    (folder / "instruct.yaml").write_text(last)
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(folder)])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in told
    assert f"{folder / 'instruct.yaml'}:" in told and told.count("\n") == 1
    assert not (folder.parents[1] / "runs").exists()
    files = [f"--config={each}" for each in (folder / "net.yaml", folder / "instruct.yaml")]
    with pytest.raises(ValueError, match=r"data\.test\.mine"):
        compose(["fit", *files], CheckedCLI)
    compose(["fit", *files, "--data.test=null"], CheckedCLI)


TEXT = """\
    text: {source: {class_path: data_modules.sources.TextFiles, init_args: {files: gone.txt}}, tokens: 64, length: 64}
"""


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (TEST.replace("test:", "val:").format(task="exakt"), "data.val.mine: task is 'exakt', expected one of"),
        (TEXT, "data.text.source: gone.txt"),
        (
            "      more:\n        class_path: data_modules.sources.LlavaConversations\n"
            "        init_args: {annotations: gone.json, images: images}\n",
            "data.train.more: gone.json",
        ),
    ],
)
def test_what_a_later_stage_learns_is_read_before_the_first_trains(
    folder: Path, more: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "instruct.yaml").write_text(STAGE.format(name="instruct", sources="{align: 1.0}", test=more))
    told = refused(capsys, "run", str(folder))
    assert sentence in told and "instruct.yaml:" in told, told
    assert not (folder.parents[1] / "runs").exists()


def test_a_copied_run_is_tested_once_and_what_is_not_trained_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = STAGE.format(name="instruct", sources="{align: 1.0}", test=TEST.format(task="exact"))
    (folder / "instruct.yaml").write_text(last.replace("task: exact", "task: exakt"))
    assert "--data.test: found no stage" in refused(capsys, "run", str(folder), "--data.test={}")
    without = ["--data.test=null"]
    assert overrides_of(without, ["align", "instruct"], ["align", "instruct"])["align"] == without
    main(["run", str(folder), "--only=align", *without])
    (folder / "instruct.yaml").write_text(last)

    def verb(name: str) -> str:
        files = [f"--config={each}" for each in (folder / "net.yaml", folder / "instruct.yaml", hardware)]
        main([name, *files, "--run_dir=runs/toy/instruct"])
        return capsys.readouterr().out

    hardware = folder.parent / "_hardware" / "cpu.yaml"
    capsys.readouterr()
    told = "runs/toy/instruct is not trained; test uses what it would start from: align"
    assert told in verb("test")
    assert json.loads(Path("runs/toy/instruct/test.json").read_text())["weights"] is None
    main(["run", str(folder)])
    record = json.loads(Path("runs/toy/instruct/weights/stage.json").read_text())
    assert json.loads(Path("runs/toy/instruct/test.json").read_text())["weights"] == record["sha256"]
    shutil.copytree("runs", "copied")
    os.utime("copied/toy/instruct/test.json", (0, 0))
    capsys.readouterr()
    main(["run", str(folder), "--runs=copied"])
    assert "copied/toy/instruct is tested" in capsys.readouterr().out
    assert "is not trained" not in verb("test")
    # A newer file of other weights does not count.
    tested = Path("copied/toy/instruct/test.json")
    tested.write_text(tested.read_text().replace(record["sha256"], "0" * 64))
    main(["run", str(folder), "--runs=copied"])
    assert "is tested" not in capsys.readouterr().out and record["sha256"] in tested.read_text()

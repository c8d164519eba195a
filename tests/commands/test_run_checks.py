"""`mllm run` reads what all stages are scored on before the first one trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.cli import main

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

"""Command lines and files as users get them wrong: exit code 2 and one sentence that names the key or the file.

Those of `tests/test_cli.py` are values of a stage file; these are whole commands, files and what lies around them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lightning_mllm.cli import VERBS, main
from tests.commands.conftest import TOY
from tests.test_cli import refused

FIT = f"fit --config={TOY} --run_dir=run"
# Command -> what its sentence must say. F.yaml holds what stands behind the command, if anything does.
WRONG = {
    # verbs and their arguments
    "fti": ["verb 'fti'", "'fit'"],
    "--verbose": ["verb '--verbose'"],
    "run": ["run: ", "experiment"],
    "run nowhere": ["nowhere", "mllm experiments"],
    "run quickstart/llava quickstart/cogvlm": ["run: ", "quickstart/cogvlm"],
    "run quickstart/llava --unknwon=1": ["command line: unknwon", "unknown key"],
    "run quickstart/llava --hardware": ["--hardware", "expected one argument"],
    "run quickstart/llava --only=tune": ["--only", "'tune'", "align, instruct"],
    "run quickstart/llava --onyl=align": ["onyl", "unknown key"],
    "run quickstart/llava --stage.init_from={}": ["stage.init_from", "--align.stage.init_from"],
    "run quickstart/llava --algin.stage.lr=1": ["algin", "unknown key"],
    "run quickstart/llava --align.lr=3": ["--align.lr: ", "unknown key", "'align.stage.lr'"],
    "run quickstart/llava --lr=3": ["command line: lr: ", "unknown key", "'stage.lr'"],
    "run quickstart/llava --stage.lr": ["stage.lr", "no value"],
    "ask": ["ask: ", "RUN"],
    "ask runs/none ?": ["runs/none", "no finished stage"],
    "ask runs/none ? --imgae=a.png": ["ask: ", "--imgae", "'--image'"],
    "ask runs/none ? --image=a.png": ["--image", "a.png"],
    "ask runs/none ? --device=gpu7": ["--device", "'gpu7'"],
    "ask runs/none ? --device=cuda": ["--device", "'cuda'"],
    "export": ["export: ", "RUN, --to"],
    "export runs/none --to=x": ["runs/none", "no finished stage"],
    "mix --to=x": ["mix: ", "RUN=WEIGHT"],
    "mix a=1 --to=x": ["mix: ", "'a'"],
    "world": ["world: ", "folder"],
    "world w --images=many": ["world: ", "--images", "'many'"],
    "world w --styel=drawn": ["world: ", "--styel"],
    "world w --images=-3": ["images", "-3"],
    "data show": ["data: ", "'show'"],
    "experiments copy": ["experiments: ", "copy NAME"],
    "experiments --too=x": ["experiments: ", "--too", "'--to'"],
    # the command line of fit
    "fit": ["stage"],
    "fit foo": ["'foo'", "--config F"],
    f"{FIT} foo": ["'foo'"],
    f"{FIT} lr=1": ["'lr=1'"],
    f"{FIT} stage.lrr=1": ["stage.lrr", "'lr'"],
    f"{FIT} --config": ["config", "no value"],
    f"{FIT} --config=": ["--config", "no value"],
    f"{FIT} --stage.lr --stage.epochs=1": ["stage.lr", "no value"],
    f"{FIT} --overwrite=perhaps": ["--overwrite", "'perhaps'"],
    f"{FIT} --ckpt_path=absent.ckpt": ["absent.ckpt"],
    f"{FIT} --trainer.accelerator=gpu": ["trainer.accelerator", "gpu"],
    f"{FIT} --trainer.accelerator=cuda": ["trainer.accelerator: ", "is not available"],
    f"{FIT} --trainer.accelerator=tpux": ["trainer.accelerator", "tpux"],
    f"{FIT} --trainer.precision=15": ["trainer.precision", "15"],
    f"{FIT} --trainer.strategy=fast": ["trainer.strategy", "fast"],
    f"{FIT} --trainer.callbacks=absent.Callback": ["trainer.callbacks", "absent.Callback"],
    f"{FIT} --trainer.callbacks=[absent.Callback]": ["trainer.callbacks", "absent.Callback"],
    f"{FIT} --trainer.logger=absent.Logger": ["trainer.logger", "absent.Logger"],
    f"{FIT} --trainer.max_time=soon": ["trainer.max_time", "soon"],
    f"{FIT} --model=absent.Net": ["model", "absent.Net", "no module 'absent'"],
    f"{FIT} --model=.Net": ["model", ".Net"],
    f"{FIT} --model.vision=absent.Tower": ["model.vision", "absent.Tower"],
    f"{FIT} --data=broken_module.Data": ["data", "broken_module.Data", "SyntaxError"],
    f"{FIT} --data=needs_more.Data": ["data", "needs_more.Data", "no module 'absent_library'"],
    f"{FIT} --seed_everything=lucky": ["seed_everything", "'lucky'"],
    f"{FIT} --stage.betas=[0.9,high]": ["stage.betas", "high"],
    f"{FIT} --stage.train={{a:{{lr:fast}}}}": ["stage.train"],
    f"{FIT} --model.help=absent.Net": ["--model.help", "absent.Net"],
    f"{FIT} --stag.help": ["--stag.help", "'stage'"],
    f"{FIT} --stage.lr.help": ["--stage.lr.help", "float"],
    # files
    "fit --config=stage.yaml": ["stage.yaml:2: model.chat: ", "expected model.class_path", "--config net.yaml"],
    "fit --config=net.yaml --data.train={}": ["data.train: ", "expected data.class_path"],
    f"{FIT} --config=absent.yaml": ["absent.yaml", "No such file"],
    f"{FIT} --config=folder": ["folder", "Is a directory"],
    f"{FIT} --config=empty.yaml": ["empty.yaml", "empty file"],
    f"{FIT} --config=comment.yaml": ["comment.yaml", "empty file"],
    f"{FIT} --config=picture.yaml": ["picture.yaml", "UTF-8"],
    f"{FIT} --config=list.yaml": ["list.yaml", "a mapping"],
    f"{FIT} --config=text.yaml": ["text.yaml", "a mapping"],
    f"{FIT} --config=null_stage.yaml": ["stage"],
    f"{FIT} --config=nested.yaml": ["nested.yaml:2", "data.train.squares.samples", "'few'"],
    f"{FIT} --config=number_key.yaml": ["number_key.yaml:1", "3"],
    f"{FIT} --config=locked.yaml": ["locked.yaml", "Permission denied"],
    f"{FIT} --config=test_set.yaml": ["test_set.yaml:3", "data.test.a.limit", "'all'"],
    f"{FIT} --config=callbacks.yaml": ["callbacks.yaml:2", "trainer.callbacks", "absent.Callback"],
}
FILES = {
    "net.yaml": "model: {class_path: tests.toy.Toy}\n",
    "stage.yaml": "model:\n  init_args: {chat: plain}\nstage: {name: align}\n",
    "empty.yaml": "",
    "comment.yaml": "# nothing yet\n",
    "list.yaml": "- stage\n",
    "text.yaml": "stage\n",
    "null_stage.yaml": "stage: null\n",
    "nested.yaml": "data:\n  init_args: {train: {squares: {class_path: tests.training.data.Squares, "
    "init_args: {samples: few}}}}\n",
    "number_key.yaml": "3: 4\n",
    "locked.yaml": "stage: {lr: 1}\n",
    "test_set.yaml": "data:\n  init_args:\n    test: {a: {source: {class_path: tests.training.data.Squares}, "
    "task: exact, limit: all}}\n",
    "callbacks.yaml": "trainer:\n  callbacks: [{class_path: absent.Callback}]\n",
    "broken_module.py": "def (\n",
    "needs_more.py": "import absent_library\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "picture.yaml").write_bytes(b"\x89PNG\xff")
    (folder / "folder").mkdir()
    (folder / "locked.yaml").chmod(0)
    return folder


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_told_in_one_sentence(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "locked.yaml" in command and os.geteuid() == 0:
        pytest.skip("root reads every file")
    if command.endswith(("accelerator=gpu", "accelerator=cuda", "device=cuda")) and torch.cuda.is_available():
        pytest.skip("this machine has one")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    sentence = refused(capsys, *command.split(" "))
    assert [part for part in WRONG[command] if part not in sentence] == [], sentence
    assert "Traceback" not in sentence
    assert not (place / "run").exists()


def test_a_stopped_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "fit", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["fit"])
    # Nothing has been trained: nothing is promised.
    assert stopped.value.code == 130 and capsys.readouterr().err == "mllm: stopped\n"


def test_no_sentence_is_empty(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: object) -> None:
        from lightning_mllm.contracts import ImageFile

        ImageFile(Path("absent.png")).read(10)

    monkeypatch.setitem(VERBS, "ask", fail)
    assert "absent.png" in refused(capsys, "ask")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("mllm 0.")
    for words, shown in {
        "--model.help tests.toy.Toy": "--model.connector",
        "--model.help": "lightning_mllm.architectures.",
        "--data.help": "data_modules.module.",
        "--stage.lora.help": "--stage.lora.alpha",
        "--stage.train.help": "--stage.train.NAME.lr",
        "--data.help data_modules.module.InstructionDataModule": "--data.train",
        f"--config={TOY} --data.train.squares.help": "--data.train.squares.samples",
        f"--config={TOY} --data.help data_modules.module.CaptionDataModule": "--data.train",
        f"--config={TOY} --model.help": "--model.vision",
    }.items():
        main(["fit", *words.split(" ")])
        out = capsys.readouterr().out
        assert shown in out and "Tallied" not in out, words

"""The commands on a toy architecture: what they run, what they refuse, and how they say it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from data_modules.loader import StepsAhead
from lightning_mllm import load
from lightning_mllm.cli import VERBS, main
from lightning_mllm.commands.command_line import default_run_dir, split_options
from lightning_mllm.commands.run import order_of_stages
from lightning_mllm.contracts import Evaluation, ImageRef, Sample, Turn


@dataclass(frozen=True)
class Sheet:
    """A picture of one colour."""

    colour: str

    @property
    def name(self) -> str:
        return self.colour

    def read(self, max_bytes: int) -> bytes:
        import io

        stream = io.BytesIO()
        Image.new("RGB", (8, 8), self.colour).save(stream, format="PNG")
        return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Sheets of these colours, each `repeats` times."""

    colours: tuple[str, ...] = ("red", "blue")
    repeats: int = 8

    def samples(self) -> list[Sample]:
        images: list[ImageRef] = [Sheet(colour) for colour in self.colours] * self.repeats
        return [
            Sample(
                id=str(index),
                index=index,
                turns=(Turn(role="user", text="<image>?"), Turn(role="assistant", text=image.name)),
                images=(image,),
                references=(image.name,),
                task="exact",
            )
            for index, image in enumerate(images)
        ]


class ColourData(LightningDataModule):
    def __init__(
        self,
        train: dict[str, Colours],
        epochs: float = 1,
        global_batch: int = 1,
        micro_batch: int = 1,
        eval_batch: int = 8,
        workers: int = 0,
        seed: int = 0,
        processor: Any = None,
    ) -> None:
        super().__init__()
        self.samples = [sample for source in train.values() for sample in source.samples()]
        self.epochs, self.micro_batch, self.eval_batch = int(epochs), micro_batch, eval_batch
        self.processor = processor
        self.optimizer_steps = len(self.samples) * self.epochs // global_batch
        self.global_batch = global_batch

    def train_dataloader(self) -> Any:
        rows = [self.processor.encode(sample) for sample in self.samples] * self.epochs
        size, accumulate = self.micro_batch, self.global_batch // self.micro_batch
        return StepsAhead(DataLoader(rows, batch_size=size, collate_fn=self.processor.collate), accumulate)  # pyright: ignore[reportArgumentType]

    def test_dataloader(self) -> Any:
        rows = [self.processor.encode(sample, generate=True) for sample in self.samples]
        return [DataLoader(rows, batch_size=self.eval_batch, collate_fn=self._left)]  # pyright: ignore[reportArgumentType]

    predict_dataloader = test_dataloader

    def _left(self, rows: list[Any]) -> Any:
        return self.processor.collate(rows, padding="left")

    def evaluations(self, split: str) -> list[Evaluation]:
        return [Evaluation(task="exact")]


NET = """\
model:
  class_path: tests.toy.Toy
  init_args:
    connector: {in_width: 16, out_width: 24}
"""
STAGE = """\
stage: {{name: {name}, init_from: {sources}, global_batch: 8, epochs: 2, lr: 1.0e-2, warmup: 0}}
data:
  class_path: tests.test_cli.ColourData
  init_args:
    train:
      colours: {{repeats: 8}}
"""
MACHINE = """\
hardware: {micro_batch: 4, eval_batch: 8}
trainer: {accelerator: cpu, devices: 1, enable_progress_bar: false}
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one experiment, with the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "colours" / "toy"
    folder.mkdir(parents=True)
    (folder / "net.yaml").write_text(NET)
    (folder / "tune.yaml").write_text(STAGE.format(name="instruct", sources="{begin: 1.0}"))
    (folder / "begin.yaml").write_text(STAGE.format(name="align", sources="{}"))
    machine = folder.parents[1] / "_hardware"
    machine.mkdir()
    (machine / "cpu.yaml").write_text(MACHINE)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("mllm: ") and error.count("\n") == 1, error
    return error.removeprefix("mllm: ").strip()


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert max(map(len, shown.splitlines())) <= 120


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the nearest is 'export'" in refused(capsys, "exprot")


def test_run_trains_skips_tests_and_reports(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "experiments/colours/toy"])
    run = Path("runs/colours/toy")
    for stage in ("begin", "tune"):
        assert {each.name for each in (run / stage).iterdir()} >= {
            "config.yaml",
            "metrics.csv",
            "weights",
            "checkpoints",
        }
    assert json.loads((run / "report.json").read_text())["seconds"] > 0
    assert (run / "report.html").is_file()
    assert json.loads((run / "tune/test.json").read_text())["scores"]
    assert not (run / "begin/test.json").exists()
    resolved = yaml.safe_load((run / "tune/config.yaml").read_text())
    assert resolved["stage"]["init_from"] == {"begin": 1.0}
    assert resolved["trainer"]["max_epochs"] == 1

    # A second call trains nothing again; a changed recipe is refused.
    before = (run / "tune/weights/stage.json").read_bytes()
    main(["run", "experiments/colours/toy"])
    assert (run / "tune/weights/stage.json").read_bytes() == before
    sentence = refused(capsys, "run", "experiments/colours/toy", "--stage.lr=1e-3")
    assert "stage.lr" in sentence and "name another --run_dir" in sentence

    # Hardware is no part of the recipe.
    main(["run", "experiments/colours/toy", "--hardware.micro_batch=8"])
    assert (run / "tune/weights/stage.json").read_bytes() == before

    # What it wrote can be asked, and is what was tested.
    model = load(run)
    answer = model.answer(Image.new("RGB", (8, 8), "red"), "?")
    assert answer == load(run / "tune").answer(Image.new("RGB", (8, 8), "red"), "?")
    picture = Path("red.png")
    Image.new("RGB", (8, 8), "red").save(picture)
    capsys.readouterr()
    main(["ask", str(run), "--image", str(picture), "?"])
    assert capsys.readouterr().out.strip() == answer
    assert "no file" in refused(capsys, "ask", str(run), "--image", "absent.png", "?")

    # Its own record trains the same stage again.
    shutil.copytree(run / "tune", "again", ignore=shutil.ignore_patterns("weights", "checkpoints"))
    main(["fit", "--config", "again/config.yaml", "--run_dir=runs/colours/toy/second"])
    first, second = (load_file(each / "weights/model.safetensors") for each in (run / "tune", run / "second"))
    assert all(torch.equal(first[name], second[name]) for name in first | second)

    # The other verbs take the same files.
    same = [f"--config={experiment / name}.yaml" for name in ("net", "tune")]
    main(["test", *same, f"--config={experiment.parents[1] / '_hardware/cpu.yaml'}"])
    main(["predict", *same, f"--config={experiment.parents[1] / '_hardware/cpu.yaml'}"])
    rows = [json.loads(line) for line in (run / "tune/answers.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and rows[0].keys() == {"task", "part", "id", "prompt", "answer"}
    assert "tune/answers.jsonl (16 answers)" in capsys.readouterr().out


def test_an_experiment_without_test_sets_is_trained_and_says_so(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (experiment / "tune.yaml").unlink()
    (experiment / "begin.yaml").write_text(
        "stage: {name: align, global_batch: 4, warmup: 0}\n"
        "data:\n  class_path: data_modules.module.InstructionDataModule\n"
        "  init_args: {train: {a: {class_path: tests.training.data.Squares}}}\n"
    )
    main(["run", "experiments/colours/toy"])
    run = Path("runs/colours/toy")
    assert f"{run}: no report, for no test sets (data.test) stand in begin" in capsys.readouterr().out
    assert (run / "begin/weights/stage.json").is_file() and not (run / "report.json").exists()


def test_every_stage_with_test_sets_is_tested(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = "{a: {class_path: tests.training.data.Squares}}"
    sets = "{squares: {source: {class_path: tests.training.data.Squares}, task: exact}}"
    for name, sources, test in (("look", "{}", sets), ("talk", "{look: 1.0}", sets), ("sing", "{}", "{}")):
        (experiment / f"{name}.yaml").write_text(
            f"stage: {{name: align, init_from: {sources}, global_batch: 4, warmup: 0}}\n"
            "data:\n  class_path: data_modules.module.InstructionDataModule\n"
            f"  init_args: {{train: {train}, test: {test}}}\n"
        )
    for name in ("begin", "tune"):
        (experiment / f"{name}.yaml").unlink()
    run = Path("runs/colours/toy")

    def tests() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("*/test.json")}

    main(["run", "experiments/colours/toy", "--only=sing"])
    assert tests() == {} and not (run / "report.json").exists()
    main(["run", "experiments/colours/toy", "--only=look"])
    assert set(tests()) == {"look"}
    assert "exact_match" in json.loads((run / "report.json").read_text())
    first = tests()
    capsys.readouterr()
    main(["run", "experiments/colours/toy"])
    assert set(tests()) == {"look", "talk"} and tests()["look"] == first["look"]
    shown = capsys.readouterr().out
    assert "look is tested" in shown
    names = [line.split()[1:5:2] for line in shown.splitlines() if "exact_match" in line]
    assert names == [["look", "exact_match"], ["talk", "exact_match"]]
    scores = json.loads((run / "report.json").read_text())
    assert {name.split("/")[0] for name in scores} == {"look", "talk", "seconds"}
    assert {"look/exact_match", "look/exact_match_blind", "talk/exact_match"} <= set(scores)

    # What was trained anew is tested anew, and nothing else.
    before = tests()
    shutil.rmtree(run / "talk")
    main(["run", "experiments/colours/toy"])
    assert tests()["look"] == before["look"] and tests()["talk"] > before["talk"]


def test_a_stopped_stage_goes_on(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["run", "experiments/colours/toy", "--only=begin", "--runs=whole"])
    calls = 0
    encode = ColourData.train_dataloader

    def stop_at_the_first_checkpoint(self: ColourData) -> Any:
        nonlocal calls
        calls += 1
        return encode(self)

    monkeypatch.setattr(ColourData, "train_dataloader", stop_at_the_first_checkpoint)
    from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint

    finish = StageCheckpoint.on_train_batch_end

    def interrupt(self: StageCheckpoint, *arguments: Any, **named: Any) -> None:
        finish(self, *arguments, **named)
        if self.saved_step:
            raise RuntimeError("stopped")

    monkeypatch.setattr(StageCheckpoint, "on_train_batch_end", interrupt)
    with pytest.raises(RuntimeError, match="stopped"):
        main(["run", "experiments/colours/toy", "--only=begin", "--checkpoint_every=2"])
    assert not Path("runs/colours/toy/begin/weights").exists()
    monkeypatch.setattr(StageCheckpoint, "on_train_batch_end", finish)
    main(["run", "experiments/colours/toy", "--only=begin", "--checkpoint_every=2"])
    assert calls == 2
    record = json.loads(Path("runs/colours/toy/begin/weights/stage.json").read_text())
    assert record["steps"] == json.loads(Path("whole/colours/toy/begin/weights/stage.json").read_text())["steps"]


def test_stages_follow_init_from(experiment: Path) -> None:
    assert order_of_stages(experiment) == ["begin", "tune"]
    (experiment / "begin.yaml").write_text(STAGE.format(name="align", sources="{colours/toy/tune: 1.0}"))
    with pytest.raises(ValueError, match="start from one another"):
        order_of_stages(experiment)


def test_where_a_run_is_kept() -> None:
    assert default_run_dir([Path("experiments/llava_7b/net.yaml"), Path("experiments/llava_7b/align.yaml")]) == Path(
        "runs/llava_7b/align"
    )
    given = split_options(["--config", "a.yaml", "--config=b.yaml", "--stage.lr", "1", "--x=2"])
    assert given == ([Path("a.yaml"), Path("b.yaml")], [("stage.lr", "1"), ("x", "2")])


# What is written last -> what the sentence must say: place, key, found, expected, nearest.
WRONG_FILES = {
    "stage:\n  lrr: 3\n": ["bad.yaml:2", "stage.lrr", "expected", "'lr'"],
    "foo: 1\n": ["bad.yaml:1", "foo", "unknown key"],
    "stge: {lr: 1}\n": ["bad.yaml:1", "stge", "'stage'"],
    "stage: [1, 2]\n": ["bad.yaml:1", "stage", "found a list, expected a mapping"],
    "stage: 3\n": ["bad.yaml:1", "stage", "found '3', expected a mapping"],
    "stage:\n  lr: no\n": ["bad.yaml:2", "stage.lr", "'False'", "a number"],
    "stage:\n  lr: fast\n": ["bad.yaml:2", "stage.lr", "'fast'", "a number"],
    "stage:\n  lr: 1\n  lr: 2\n": ["bad.yaml:3", "stage.lr", "second time", "line 2"],
    "stage: {lr: -1}\n": ["bad.yaml:1", "stage.lr", "-1", "above 0"],
    "stage: {epochs: 0}\n": ["bad.yaml:1", "stage.epochs", "above 0"],
    "stage: {global_batch: 0.5}\n": ["bad.yaml:1", "stage.global_batch", "'0.5'", "whole number"],
    "stage: {global_batch: 0}\n": ["bad.yaml:1", "stage.global_batch", "at least 1"],
    "stage:\n  global_batch: 6\n": ["bad.yaml:2", "stage.global_batch", "found 6", "multiple of 4"],
    "stage:\n  decay: cosin\n": ["bad.yaml:2", "stage.decay", "cosine, cosine_epochs, linear, constant", "'cosine'"],
    "stage:\n  name: algin\n": ["bad.yaml:2", "stage.name", "algin", "align"],
    "stage: {betas: [0.9, 2]}\n": ["bad.yaml:1", "stage.betas"],
    "stage: {betas: [0.9]}\n": ["bad.yaml:1", "stage.betas"],
    "stage: {init_from: {a: b}}\n": ["bad.yaml:1", "stage.init_from", "'b'", "a number"],
    "stage: {train: {a: 3}}\n": ["bad.yaml:1", "stage.train.a", "'3'", "a mapping"],
    "stage: {train: {'a.*': {lrr: 3}}}\n": ["bad.yaml:1", "lrr", "'lr'"],
    "stage: {train: {'conector.*': {lr: 3}}}\n": ["conector.*", "connector"],
    "stage: {lora: {r: big}}\n": ["bad.yaml:1", "stage.lora.r", "'big'", "whole number"],
    "stage: {lr: !!python/object:os.system x}\n": ["bad.yaml:1", "python/object"],
    "a: [\n": ["bad.yaml:2", "YAML"],
    "a:\n\tb: 1\n": ["bad.yaml:2", "YAML"],
    "- a\n": ["bad.yaml", "a mapping"],
    "hardware: {micro_batch: 0}\n": ["bad.yaml:1", "hardware.micro_batch", "at least 1"],
    "hardware: {micro_batch: many}\n": ["bad.yaml:1", "hardware.micro_batch", "'many'", "whole number"],
    "hardware: {microbatch: 4}\n": ["bad.yaml:1", "hardware.microbatch", "'micro_batch'"],
    "trainer: {max_stps: 4}\n": ["bad.yaml:1", "trainer.max_stps", "'max_steps'"],
    "trainer:\n  max_steps: a\n": ["bad.yaml:2", "trainer.max_steps", "'a'", "whole number"],
    "model: 3\n": ["bad.yaml:1", "model", "'3'", "a mapping"],
    "model: {class_path: tests.toy.Toi}\n": ["bad.yaml:1", "tests.toy.Toi", "'Toy'"],
    "model: {class_path: tests.toi.Toy}\n": ["bad.yaml:1", "no module 'tests.toi'"],
    "model: {class_path: Toy}\n": ["bad.yaml:1", "'Toy'", "dotted path"],
    "model: {class_path: tests.test_cli.ColourData}\n": ["bad.yaml:1", "ColourData", "MultimodalModule"],
    "model:\n  init_args:\n    conector: {}\n": ["bad.yaml:3", "model.conector", "'connector'"],
    "model:\n  init_args:\n    connector: {in_wdth: 3}\n": ["bad.yaml:3", "model.connector.in_wdth", "'in_width'"],
    "model:\n  init_args:\n    connector: {in_width: x}\n": ["bad.yaml:3", "model.connector.in_width", "'x'"],
    "data: {class_path: tests.test_cli.Colours}\n": ["bad.yaml:1", "Colours", "LightningDataModule"],
    "data:\n  init_args:\n    trn: {}\n": ["bad.yaml:3", "data.trn", "'train'"],
    "data:\n  init_args:\n    train: {a: {repeat: 2}}\n": ["bad.yaml:3", "data.train.a.repeat", "'repeats'"],
    "data:\n  init_args:\n    train: {a: {repeats: two}}\n": ["bad.yaml:3", "data.train", "'two'", "whole number"],
    "data: {init_args: {train: nothing}}\n": ["bad.yaml:1", "data.train"],
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    folder = tmp_path_factory.mktemp("wrong")
    for name, text in (("net", NET), ("stage", STAGE.format(name="align", sources="{}")), ("machine", MACHINE)):
        (folder / f"{name}.yaml").write_text(text)
    bad = folder / "bad.yaml"

    def command(text: str | None, *options: str) -> list[str]:
        bad.write_text(text or "")
        files = [folder / f"{name}.yaml" for name in ("net", "stage", "machine", *(["bad"] if text else []))]
        return ["fit", *(f"--config={file}" for file in files), f"--run_dir={folder / 'run'}", *options]

    return command


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_wrong_file_is_refused(
    text: str, wrong: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, *wrong(text))
    assert [part for part in WRONG_FILES[text] if part not in sentence] == [], sentence


WRONG_OPTIONS = {
    "--stage.lrr=1": ["command line", "stage.lrr", "'lr'"],
    "--stge.lr=1": ["command line", "stge", "'stage'"],
    "--stage.lr=abc": ["command line", "stage.lr", "'abc'", "a number"],
    "--model.vision.wdth=3": ["command line", "model.vision.wdth", "'width'"],
    "--model.init_args.vision.width=x": ["command line", "model.vision.width", "'x'"],
    "--model=tests.toy.Toi": ["command line", "'Toy'"],
    "--config=absent.yaml": ["absent.yaml", "No such file"],
    "--trainer.devices=0": ["devices"],
}


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_a_wrong_option_is_refused(
    option: str, wrong: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, *wrong(None, option))
    assert [part for part in WRONG_OPTIONS[option] if part not in sentence] == [], sentence


def test_nothing_is_built_when_refused(
    wrong: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr("tests.toy.Toy.configure_model", built)
    refused(capsys, *wrong("stage: {lr: -1}\n"))
    refused(capsys, *wrong("stage: {global_batch: 6}\n"))
    monkeypatch.setattr("tests.toy.Toy.__init__", built)
    refused(capsys, *wrong("stage:\n  lr: fast\n"))


def test_missing_experiment_and_hardware(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the nearest is 'experiments/colours/toy'" in refused(capsys, "run", "experiments/colours/tay")
    assert "the nearest is 'cpu'" in refused(capsys, "run", "experiments/colours/toy", "--hardware=cpus")
    assert "the nearest is 'begin'" in refused(capsys, "run", "experiments/colours/toy", "--only=begn")
    assert "no finished stage" in refused(capsys, "ask", "runs/none", "--image", str(experiment / "net.yaml"), "?")


def test_an_error_of_a_library_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "world", lambda arguments: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["world"])

"""A stopped stage goes on with the data and the processor that it was begun with, wherever they are now; or is refused
by the name of what changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.cli import main
from lightning_mllm.commands.fingerprints import changed_files, of_files, of_folder
from lightning_mllm.commands.identity import drift, identity_of
from lightning_mllm.contracts import Sample, Turn
from lightning_mllm.processing.fingerprint import are_encoded_alike, encoded_digest, processor_digests
from lightning_mllm.training.callbacks.checkpoint import StageCheckpoint
from tests.commands.conftest import TOY
from tests.data_modules.files import write
from tests.test_cli import refused
from tests.training.data import COLOURS
from tests.training.runs import settings

FULL = bool(os.environ.get("MLLM_FULL"))
IDENTITY = Path("run/identity.json")
DATA = """
data:
  init_args:
    train:
      squares: null
      chats: {class_path: data_modules.sources.LlavaConversations, init_args: {annotations: a.json, images: pics}}
      more: {class_path: data_modules.sources.LlavaConversations, init_args: {annotations: b.json, images: pics}}
    test: null
stage: {epochs: 1, global_batch: 4}
"""
FIT = ("fit", f"--config={TOY}", "--config=data.yaml", "--run_dir=run", "--trainer.enable_progress_bar=false")


class Stopped(Exception):
    """Stands for whatever ends a process."""


def chat(number: int) -> dict[str, Any]:
    colour = list(COLOURS)[number % 4]
    said = [{"from": "human", "value": f"<image>\nsquare {number}"}, {"from": "gpt", "value": colour}]
    return {"id": f"c{number}", "image": f"{number}.png", "conversations": said}


def draw(number: int, colour: Sequence[int]) -> None:
    Image.new("RGB", (8, 8), tuple(colour)).save(f"pics/{number}.png")  # pyright: ignore[reportArgumentType]


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped after its first step."""
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()
    for number in range(12):
        draw(number, COLOURS[list(COLOURS)[number % 4]])
    Path("data.yaml").write_text(DATA.replace("      squares: null\n", ""))
    write(Path("a.json"), [chat(number) for number in range(8)])
    write(Path("b.json"), [chat(number) for number in range(8, 12)])
    stop()
    return tmp_path


def stop() -> None:
    finish = StageCheckpoint.on_train_batch_end

    def end(self: StageCheckpoint, trainer: Any, *arguments: Any) -> None:
        finish(self, trainer, *arguments)
        if self.saved_step:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCheckpoint, "on_train_batch_end", end)
        with pytest.raises(Stopped):
            main([*FIT, "--checkpoint_every=1"])


def edited() -> str:
    write(Path("a.json"), [{**chat(3), "id": "c0"}, *(chat(number) for number in range(1, 8))])
    return "data.train.chats"


def appended() -> str:
    write(Path("a.json"), [chat(number) for number in range(10)])
    return "data.train.chats"


def removed() -> str:
    write(Path("b.json"), [chat(number) for number in range(8, 11)])
    return "data.train.more"


def reordered() -> str:
    write(Path("a.json"), [chat(number) for number in reversed(range(8))])
    return "data.train.chats"


def pixels() -> str:
    draw(5, (1, 2, 3))
    return "data.train.chats.images"


def pixels_of_the_same_size_and_time() -> str:
    before = os.stat("pics/6.png")
    content = bytearray(Path("pics/6.png").read_bytes())
    content[-20] ^= 1
    Path("pics/6.png").write_bytes(content)
    os.utime("pics/6.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    return "data.train.chats.images"


def picture_replaced_by_another() -> str:
    shutil.copy("pics/1.png", "pics/2.png")
    return "data.train.chats.images"


def a_word_of_the_same_length() -> str:
    before = os.stat("b.json")
    text = Path("b.json").read_text().replace("square 9", "square 8")
    Path("b.json").write_text(text)
    os.utime("b.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    return "data.train.more"


def answers_exchanged() -> str:
    text = Path("a.json").read_text()
    Path("a.json").write_text(text.replace("green", "x").replace("blue", "green").replace("x", "blue"))
    return "data.train.chats"


FILES: list[Callable[[], str]] = [
    edited,
    appended,
    removed,
    reordered,
    pixels,
    pixels_of_the_same_size_and_time,
    picture_replaced_by_another,
    a_word_of_the_same_length,
    answers_exchanged,
]
OPTIONS = {
    "--seed_everything=1": "seed_everything",
    "--data.weights={chats: 0.7, more: 0.3}": "data.weights",
    "--trainer.precision=bf16-mixed": "precision.trainer",
    "--stage.warmup=0.5": "stage.warmup",
    "--data.overlong=drop": "data.overlong",
    "--model.language.dropout=0.1": "model.language.dropout",
}


@pytest.mark.fault
def test_what_changed_is_refused_by_name(
    stopped: Path, capsys: pytest.CaptureFixture[str], fault_row: Callable[[str, str, str], None]
) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    capsys.readouterr()
    changes, options = (FILES, OPTIONS) if FULL else (FILES[::3], dict(list(OPTIONS.items())[2:4]))
    for change in changes:
        name = change()
        sentence = refused(capsys, *FIT)
        assert f"run: found {name}" in sentence and "--allow-drift" in sentence, change
        for path, content in before.items():
            if path.read_bytes() != content:
                assert path.parent.name == "pics" or path.suffix == ".json", "nothing in the run folder was touched"
                path.write_bytes(content)
    for option, name in options.items():
        sentence = refused(capsys, *FIT, option)
        assert name in sentence and "--allow-drift" in sentence, option
    number = len(changes) + len(options)
    fault_row("T16", f"{number} of {number}", "changed data, pixels, seed, weights, precision ...: refused by name")
    main(FIT)
    assert "goes on from checkpoints/step-1" in capsys.readouterr().out
    assert Path("run/weights/stage.json").is_file()


def test_drift_that_is_allowed_is_recorded(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    appended()
    pixels()
    allowed = ("--allow-drift=data.train.chats", "--allow-drift", "stage.lr", "--stage.lr=0.5")
    capsys.readouterr()
    sentence = refused(capsys, *FIT, *allowed)
    assert "data.train.more.images" in sentence and "data.train.chats" not in sentence.split("; ")[0]
    main([*FIT, *allowed, "--allow-drift=data.train.more"])
    told = capsys.readouterr().out
    assert "goes on with another stage.lr, data.train.chats.annotations (another content)" in told
    (drift,) = json.loads(IDENTITY.read_text())["drift"]
    assert drift["names"][0] == "data.train.chats" and "stage.lr" in drift["names"]
    rows = Path("run/metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("train/lr")
    assert float(rows[-1].split(",")[place]) < 0.5
    assert max(float(row.split(",")[place]) for row in rows[2:]) > 0.1, "the rate is the new one"
    # The finished stage: its files are those of its last training, and then they are not.
    main([*FIT, "--stage.lr=0.5"])
    assert capsys.readouterr().out == "run is done\n"
    edited()
    assert "data.train.chats.annotations (another content of a.json)" in refused(capsys, *FIT, "--stage.lr=0.5")
    main([*FIT, "--stage.lr=0.5", "--allow-drift=data"])


def test_data_that_were_moved_are_the_same(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("elsewhere").mkdir()
    for name in ("a.json", "b.json", "pics"):
        shutil.copytree(name, f"elsewhere/{name}") if name == "pics" else shutil.copy(name, f"elsewhere/{name}")
    moved = DATA.replace("      squares: null\n", "").replace(": a.json", ": elsewhere/a.json")
    Path("data.yaml").write_text(moved.replace(": b.json", ": elsewhere/b.json").replace("pics", "elsewhere/pics"))
    Image.new("RGB", (8, 8)).save("elsewhere/pics/of another set.png")
    shutil.rmtree("pics")
    main(FIT)
    assert "goes on from checkpoints/step-1" in capsys.readouterr().out
    main(FIT)
    assert capsys.readouterr().out.endswith("run is done\n")


def test_no_identity_is_said(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    IDENTITY.unlink()
    main([*FIT, "--stage.name=align"])
    assert "found no identity.json, so whether the data are the same was not looked at" in capsys.readouterr().out
    assert IDENTITY.is_file()


def test_large_folders_are_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_mllm.commands import fingerprints

    monkeypatch.setattr(fingerprints, "PICTURES", 40)
    monkeypatch.setattr(fingerprints, "LOOKED_INTO", 4)
    for number in range(400):
        (tmp_path / f"{number}.png").write_bytes(bytes(100 + number % 7))
    before = of_folder(tmp_path)
    assert changed_files(before, of_folder(tmp_path, before)) == []
    (tmp_path / "new.png").write_bytes(b"")
    assert changed_files(before, of_folder(tmp_path, before)) == []
    for number in range(400):
        (tmp_path / f"{number}.png").write_bytes(bytes(120))
    assert 20 < len(changed_files(before, of_folder(tmp_path, before))) < 60
    (tmp_path / "link").symlink_to(tmp_path)
    assert changed_files(before, of_folder(tmp_path, before))


def test_large_files_are_looked_at_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_mllm.commands import fingerprints

    for name, value in {"WHOLE": 5000, "BLOCK": 100, "BLOCKS": 10}.items():
        monkeypatch.setattr(fingerprints, name, value)
    file = tmp_path / "a.json"
    file.write_bytes(bytes(10_000))
    before = of_files([file])
    for place in (0, 1050, 9999):
        content = bytearray(10_000)
        content[place] = 1
        file.write_bytes(content)
        assert of_files([file]) != before


def found(recipe: dict[str, Any], **more: Any) -> dict[str, object]:
    given: dict[str, Any] = {"init_from": {}, "processor": None, "precision": {}, **more}
    processor, init_from = given.pop("processor"), given.pop("init_from")
    return identity_of(recipe, None, processor, init_from, Path("runs"), None, **given)


def test_corpora_tokenizers_and_what_a_stage_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"class_path": "TextLines", "init_args": {"files": ["corpus/{000..001}.jsonl", "corpus/*.txt"]}}
    recipe = {
        "data": {"class_path": "Data", "init_args": {"text": {"source": source}}},
        "model": {"class_path": "Net", "init_args": {"language": {"model": "lm"}, "chat": "corpus"}},
    }
    for name in ("corpus/000.jsonl", "corpus/001.jsonl", "corpus/a.txt", "lm/tokenizer.json", "lm/model.safetensors"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    record = Path("runs/align/weights/stage.json")
    record.parent.mkdir(parents=True)
    stage = {"format": 1, "stage": "align", "sha256": "", "init_from": {}, "lineage": []}
    record.write_text(json.dumps(stage))

    def now() -> dict[str, object]:
        return found(recipe, init_from={"align": 1.0}, precision={"hardware": "fp32"})

    before = now()
    assert drift(before, now()) == {}
    changes = {
        "corpus/001.jsonl": "data.text.source.files",
        "corpus/a.txt": "data.text.source.files",
        "lm/tokenizer.json": "model.language.model",
        "lm/model.safetensors": "model.language.model",
    }
    for file, name in changes.items():
        Path(file).write_text("another")
        assert list(drift(before, now())) == [name]
        Path(file).write_text(file)
    Path("lm/README.md").write_text("a note")
    assert drift(before, now()) == {}
    record.write_text(json.dumps({**stage, "sha256": "of weights that were trained anew"}))
    assert drift(before, now()) == {"stage.init_from.align": "other weights"}
    assert drift(before, {**before, "precision": {"hardware": "bf16"}}) == {"precision.hardware": "bf16 and not fp32"}


def test_a_processor_that_does_something_else() -> None:
    first = LLaVA.tiny(stage=settings("instruct"), chat="vicuna_v1").processor
    again = LLaVA.tiny(stage=settings("instruct"), chat="vicuna_v1").processor
    assert processor_digests(first) == processor_digests(again)
    for name, changed in {"chat": {"chat": "plain"}, "max_length": {"max_length": 99}}.items():
        other = processor_digests(LLaVA.tiny(stage=settings("instruct"), **{"chat": "vicuna_v1", **changed}).processor)
        odd = [part for part, digest in processor_digests(first).items() if other[part] != digest]
        assert odd == [{"chat": "chat template"}.get(name, name)]
    again.tokenizer.add_tokens(["<new>"])
    assert processor_digests(again)["tokenizer"] != processor_digests(first)["tokenizer"]
    sample = Sample(id="a", turns=(Turn(role="user", text="what?"), Turn(role="assistant", text="b")))
    other = LLaVA.tiny(stage=settings("instruct"), chat="llama_2").processor
    assert len({encoded_digest(each, [(sample, torch.Generator())]) for each in (first, again, other)}) == 2
    assert encoded_digest(first, [(sample, torch.Generator())]) != encoded_digest(first, [])


def test_what_is_no_picture_in_a_folder_of_them_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "below.png").mkdir()
    before = of_folder(tmp_path)
    assert changed_files(before, of_folder(tmp_path, before)) == []
    (tmp_path / "pipe.png").unlink()
    (tmp_path / "pipe.png").write_bytes(b"")
    assert changed_files(before, of_folder(tmp_path, before)) == ["pipe.png"]


def test_of_many_large_files_a_bounded_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_mllm.commands import fingerprints

    for name, value in {"WHOLE": 0, "BLOCK": 10, "BLOCKS": 8}.items():
        monkeypatch.setattr(fingerprints, name, value)
    files = [tmp_path / f"{number:02}.tar" for number in range(40)]
    for file in files:
        file.write_bytes(bytes(100))
    (tmp_path / "folder.tar").mkdir()
    opened: list[Path] = []
    look = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *given: opened.append(path) or look(path, *given))
        before = of_files(found := fingerprints.files_at(f"{tmp_path}/*.tar"))
    assert found == files and len(opened) == 8
    opened[3].write_bytes(b"1" * 100)
    assert (changed := of_files(files)) != before
    (files[0] if files[0] not in opened else files[1]).write_bytes(bytes(101))
    assert of_files(files) not in (before, changed)


def test_what_cannot_be_encoded_for_now_is_no_drift() -> None:
    assert are_encoded_alike("0a 1b 2c", "0a - 2c") and are_encoded_alike("- 1b", "0a 1b")
    assert not are_encoded_alike("0a 1b", "0a 1c") and not are_encoded_alike("0a 1b", "0a")

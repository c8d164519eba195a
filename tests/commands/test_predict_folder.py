"""One question about every picture of a folder: every picture once, in order, however often the command is stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_modules.sources import LlavaPretrain
from lightning_mllm.cli import main
from lightning_mllm.commands import predict_folder
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.llava_records import named_in, write_records
from lightning_mllm.commands.predict_folder import is_asked, pictures
from lightning_mllm.inference import Model
from tests.inference.nets import FEW, model_of

NAMES = ["a.png", "b.PNG", "d.webp", "e.gif", "sub/c.jpg", "sub/deep/a.png"]
BAD = "d.webp"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """In a working directory with six pictures, one of which cannot be read."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(NAMES):
        file = Path("photos", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (40 * i, 255 - 40 * i, 90)).save(file)
    Path("photos", BAD).write_bytes(b"no picture")
    for name in (".hidden.png", "note.txt", "sub/.cache/x.png"):
        Path("photos", name).parent.mkdir(exist_ok=True)
        Path("photos", name).write_bytes(b"")
    found = model_of("llava")
    monkeypatch.setitem(found.module.decoding, "answer", FEW)
    monkeypatch.setattr(predict_folder, "load_given", lambda run, given: found)
    monkeypatch.setattr(predict_folder, "identity", lambda run: f"{run}@0")
    return found


def predict(*options: str, prompt: str = "What is it?", to: str = "answers.jsonl") -> None:
    main(["predict", "photos", "--run", "tiny", "--prompt", prompt, "--to", to, *options])


def test_every_picture_has_a_line(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    predict("--batch", "4")
    assert capsys.readouterr().out == ("answers.jsonl (6 lines, 1 of them errors of pictures that cannot be read)\n")
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["image"] for row in rows] == NAMES == list(pictures(Path("photos")))
    for row in rows:
        facts = {"image": row["image"], "prompt": "What is it?", "model": "tiny@0"}
        if row["image"] == BAD:
            formats = "JPEG, PNG, WEBP, GIF, BMP, TIFF"
            told = {"error": f"photos/{BAD}: found bytes of no known image format, expected one of {formats}"}
        else:
            told = {"answer": model.answer(Path("photos", row["image"]), "What is it?")}
        assert row == facts | told


def test_a_stopped_command_goes_on(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed twice: once between lines, once within one."""
    predict(to="whole.jsonl")
    asked: list[str] = []
    real, calls = model.answers, count()

    def stopped(questions: Any, **options: Any) -> list[str]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        asked.extend(str(image) for image, _ in questions)
        return real(questions, **options)

    monkeypatch.setattr(model, "answers", stopped)
    for torn in (b"", b'{"image": "sub/deep'):
        with pytest.raises(SystemExit, match="130"):
            predict("--batch", "1")
        assert not Path("answers.jsonl").exists()
        with Path("answers.jsonl.partial").open("ab") as file:
            file.write(torn)
        calls = iter([0, 1, 2]) if not torn else count(3)
        monkeypatch.setattr(model, "answers", stopped)
    predict("--batch", "1")
    assert Path("answers.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert len(asked) == len(set(asked)) == len(NAMES) and not Path("answers.jsonl.partial").exists()


def test_records_to_train_on_say_where_they_come_from(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    """A seed set is left out, a stopped command goes on, and what is written is read as ShareGPT4V's files are."""
    seed = [{"id": "a", "image": "a.png", "conversations": []}, {"id": "text"}]
    Path("seed.json").write_text(json.dumps(seed))
    options = ("--form", "llava", "--max-new-tokens", "3", "--except", "seed.json", "--batch", "2")
    predict(*options, to="captions.jsonl")
    assert "captions.jsonl (4 records; 1 pictures without one in captions.jsonl.errors.jsonl)" in (
        capsys.readouterr().out
    )
    records = [json.loads(line) for line in Path("captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [each["image"] for each in records] == [name for name in NAMES if name not in ("a.png", BAD)]
    short = replace(FEW, max_new_tokens=3)
    expected = {"model": "tiny@0", "prompt": "What is it?", "decoding": asdict(short)}
    for each in records:
        assert each["provenance"] == expected and each["id"] == each["image"].rsplit(".", 1)[0]
        asked, told = each["conversations"]
        assert asked == {"from": "human", "value": "<image>\nWhat is it?"}
        answer = model.answer(Path("photos", each["image"]), "What is it?", short)
        assert told == {"from": "gpt", "value": answer} and answer
    (error,) = [json.loads(line) for line in Path("captions.jsonl.errors.jsonl").read_text().splitlines()]
    assert error["image"] == BAD and "no known image format" in error["error"]
    assert not list(Path().glob("*.partial")) and not list(Path().glob("*.records"))
    predict(*options, to="captions.json")
    assert json.loads(Path("captions.json").read_text(encoding="utf-8")) == records
    source = LlavaPretrain("captions.json", "photos")
    source.load()
    assert len(source) == 4 and source.sample(0, torch.Generator()).references == (
        records[0]["conversations"][1]["value"].strip(),
    )


def test_what_no_record_can_hold_is_listed(tmp_path: Path) -> None:
    """Records are read again as they were written, by a source and as a seed set."""
    lines, to = tmp_path / "lines", tmp_path / "captions.jsonl"
    answers = ["a\u2028b", " ", "see <image>"]
    rows = [
        {"image": f"{n}.png", "prompt": "?", "model": "m", "decoding": {}, "answer": answer}
        for n, answer in enumerate(answers)
    ]
    rows.append({"image": "n\udcff.png", "prompt": "?", "model": "m", "decoding": {}, "answer": "b"})
    told = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
    lines.write_text(told, encoding="utf-8", errors="surrogateescape")
    assert write_records(lines, to) == 2
    assert named_in(to) == {"0.png", "n\udcff.png"}
    errors = [json.loads(line)["error"] for line in Path(f"{to}.errors.jsonl").read_text().splitlines()]
    assert ["empty answer" in errors[0], "<image> mark" in errors[1]] == [True, True]
    lines.write_text(json.dumps(rows[0]) + "\n")
    assert write_records(lines, to) == 0 and not Path(f"{to}.errors.jsonl").exists()


@pytest.mark.parametrize(
    ("seed", "sentence"),
    [
        ('[{"image": "coco/a.png"}]', "found no picture of photos, but such as 'coco/a.png', expected names as they"),
        ("{}", "found no record with an image, expected some"),
        ('[{"image": [["a.png"]]}]', "expected LLaVA's records as a JSON list or as lines"),
    ],
)
def test_a_seed_set_that_leaves_nothing_out(
    model: Model, capsys: pytest.CaptureFixture[str], seed: str, sentence: str
) -> None:
    Path("seed.json").write_text(seed)
    with pytest.raises(SystemExit, match="2"):
        predict("--form", "llava", "--except", "seed.json")
    told = capsys.readouterr().err
    assert "--except: seed.json: " in told and sentence in told


def test_other_decoding_is_not_mixed(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*asked: Any, **options: Any) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        real, calls = model.answers, count()
        patched.setattr(model, "answers", lambda *a, **k: real(*a, **k) if next(calls) == 0 else stopped())
        with pytest.raises(SystemExit, match="130"):
            predict("--batch", "1", "--form", "llava")
    for options, told in (
        (("--form", "llava", "--num-beams", "2"), "partial:1: found decoding"),
        (("--except", "absent.json"), "--except: absent.json: "),
        (("--except", "photos/note.txt", "--form", "llava"), "partial:1: found image 'a.png'"),
    ):
        Path("photos/note.txt").write_text('{"image": ["a.png"]}\n')
        with pytest.raises(SystemExit, match="2"):
            predict(*options)
        assert told in capsys.readouterr().err


def test_lines_of_something_else_are_refused(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*options: str, **more: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            predict(*options, **more)
        return capsys.readouterr().err

    assert f"photos/{BAD}: found bytes of no known image format" in refused("--bad-images", "refuse", "--batch", "1")
    assert Path("answers.jsonl.partial").read_text().count("\n") == 2, "what was answered stays"
    assert "partial:1: found prompt 'What is it?', expected 'Where?'; move it away" in refused(prompt="Where?")
    told = refused("--dtype", "bfloat16")
    assert "partial:1: found model 'tiny@0', expected 'tiny@0 bfloat16'" in told, "other weights answer otherwise"
    Path("photos/a.png").rename("photos/z.png")
    assert "partial:1: found image 'a.png', expected 'b.PNG'" in refused()
    Path("photos/z.png").rename("photos/a.png")
    with Path("answers.jsonl.partial").open("ab") as other:
        predict_folder.fcntl.flock(other, predict_folder.fcntl.LOCK_EX)
        assert "found another process that writes it" in refused()
    predict()
    assert "--to: found answers.jsonl, which is complete" in refused()
    assert "--batch: found 0, expected at least 1" in refused("--batch", "0", to="other.jsonl")


def test_a_folder_selects_this_form(tmp_path: Path) -> None:
    assert is_asked(["photos", "--run", "r"]) and is_asked(["--run=r", "photos"])
    assert not is_asked(['{"stage.name": "x"}', "-c", "net.yaml"])
    assert (
        not is_asked(["--config", "net.yaml"]) and not is_asked(["stage.name=x", "-c", "net.yaml"]) and not is_asked([])
    )
    with pytest.raises(ConfigError, match="found no folder absent, expected one of pictures"):
        predict_folder.main(["absent", "--run", "r", "--prompt", "?", "--to", "x"])
    with pytest.raises(ConfigError, match="found no picture, expected files such as"):
        predict_folder.main([str(tmp_path), "--run", "r", "--prompt", "?", "--to", "x"])

"""`mllm cache`, and an experiment that trains from what it wrote."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lightning_mllm.cli import main
from lightning_mllm.commands import cache
from lightning_mllm.training.callbacks import feature_check
from lightning_mllm.vision.tower import OpenClipTower
from lightning_mllm.weights import feature_writer
from tests.commands.tiny_experiment import tiny_experiment
from tests.training.runs import losses

VAL = {
    "talks": {
        "source": {
            "class_path": "data_modules.sources.LlavaConversations",
            "init_args": {"annotations": "val.json", "images": "images"},
        },
        "task": "loss",
    },
    "asked": {
        "source": {
            "class_path": "data_modules.sources.VqaV2",
            "init_args": {
                "questions": "questions.json",
                "annotations": "answers.json",
                "images": "images",
                "image_pattern": "{image_id}.png",
            },
        },
        "task": "vqa",
        "limit": 2,
    },
}
QUIET = "--trainer.enable_progress_bar=false"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment, with a validation set whose one picture nothing else shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feature_writer, "RECENT", 0)
    folder = tiny_experiment(tmp_path, instruct={"data": {"init_args": {"val": VAL}}})
    Image.new("RGB", (24, 12), "yellow").save("images/val.png")
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Yellow."}]
    Path("val.json").write_text(json.dumps([{"id": "v", "image": "val.png", "conversations": said}]))
    return folder


def stage(tiny: Path, name: str, run: str) -> list[str]:
    """The command that trains one."""
    configs = [f"--config={tiny / each}.yaml" for each in ("net", name)]
    return ["fit", *configs, f"--run_dir={run}", "--trainer.accelerator=cpu", QUIET]


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `mllm` prints."""
    main(list(arguments))
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_an_experiment_trains_from_what_was_written(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told(capsys, "cache", "tiny", "--to", "cache").splitlines()
    each = "each 4 x 32 in float32 (512 bytes): at most 2,048 bytes needed in cache,"
    assert said[0].startswith(f"tiny/align: 4 pictures, 4 of them new, {each}")
    assert said[2].startswith("tiny/instruct: 5 pictures, 1 of them new") and "1 new rows" in said[3]
    (store,) = Path("cache").iterdir()
    assert (store / "features.bin").stat().st_size == 6 * 512
    built: list[Any] = []
    build = OpenClipTower.build
    monkeypatch.setattr(OpenClipTower, "build", lambda self: built.append(self) or build(self))
    main([*stage(tiny, "instruct", "plain"), "--stage.init_from={}"])
    assert built
    built.clear()
    kept = [*stage(tiny, "instruct", "kept"), "--stage.init_from={}", "--hardware.feature_cache=cache"]
    main(kept)
    assert not built
    for column in ("train/loss", "val/loss", "val/vqa_accuracy"):
        plain, found = (losses(Path(run), column) for run in ("plain", "kept"))
        assert plain and [step for step, _ in plain] == [step for step, _ in found]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in plain], rel=1e-6)
    records = [json.loads(Path(run, "weights/stage.json").read_text()) for run in ("plain", "kept")]
    for record in records:
        del record["sha256"], record["settings"]["seconds"]
    assert records[0] == records[1]
    main(["test", *kept[1:]])
    assert built and Path("kept/test.json").is_file(), "the pictures of a test are not those of training"


def test_a_changed_picture(tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training; and in training an error, also where the source replaces bad samples."""
    fit = [*stage(tiny, "align", "run"), "--hardware.feature_cache=cache"]
    main(["cache", "tiny", "--to", "cache", "--only", "align"])
    Image.new("RGB", (24, 12), "black").save("images/2.png")
    said = refused(capsys, *fit)
    assert "data.train.captions: found no features of images/2.png in cache/" in said
    assert "run mllm cache again" in said and not Path("run/weights").exists()
    monkeypatch.setattr(feature_check.FeatureCheck, "setup", lambda *_, **__: None)
    said = refused(capsys, *fit, "--data.train.captions.bad_records=skip")
    assert said.startswith("mllm: images/2.png: found no features of this picture")
    assert "1 of them new" in told(capsys, "cache", "tiny", "--to", "cache", "--only", "align")


def test_a_killed_one_goes_on(tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    own, left = cache.add, [2]

    def add(writer: Any, some: Any, tower: Any, device: Any) -> None:
        if not left[0]:
            # As SIGKILL leaves it: what is in memory alone is gone.
            monkeypatch.setattr(type(writer), "flush", lambda _: None)
            raise KeyboardInterrupt
        left[0] -= 1
        own(writer, some, tower, device)
        writer.flush()

    with monkeypatch.context() as patched:
        patched.setattr(cache, "add", add)
        flush = feature_writer.FeatureWriter.flush
        with pytest.raises(SystemExit):
            main(["cache", "tiny", "--to", "cache", "--only", "align", "--batch", "1"])
        monkeypatch.setattr(feature_writer.FeatureWriter, "flush", flush)
    (store,) = Path("cache").iterdir()
    with (store / "features.bin").open("ab") as stream:
        stream.write(b"\xee" * 100)
    said = told(capsys, "cache", "tiny", "--to", "cache", "--only", "align")
    assert "4 pictures, 2 of them new" in said and "2 new rows" in said
    assert (store / "features.bin").stat().st_size == 5 * 512
    assert "0 of them new" in told(capsys, "cache", "tiny", "--to", "cache", "--only", "align")


def test_too_little_room(tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(3000, 952, 2047))
    said = refused(capsys, "cache", "tiny", "--to", "cache", "--only", "align")
    assert said == "mllm: cache: found 2,047 bytes free, expected 2,048 for 4 pictures; --dtype bfloat16 halves it"
    assert not Path("cache").exists()


def test_stages_whose_features_change(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "cache", "tiny", "--to", "cache", "--model.image.random_flip=0.5")
    assert said.startswith(
        "mllm: hardware.feature_cache: found image.random_area None, image.random_flip 0.5, by which"
    )
    align = yaml.safe_load((tiny / "align.yaml").read_text())
    align["stage"]["train"] = {"vision.*": {}, "connector.*": {}}
    (tiny / "align.yaml").write_text(yaml.safe_dump(align))
    with pytest.raises(SystemExit):
        main(["cache", "tiny", "--to", "cache"])
    printed = capsys.readouterr()
    assert "tiny/align: nothing to write, it trains from pixels (hardware.feature_cache: stage 'align'" in printed.out
    assert "tiny/instruct: starts from tiny/align, expected it to be trained first" in printed.err


def test_pictures_that_cannot_be_used_are_told(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("images/1.png").write_bytes(b"no picture")
    said = told(capsys, "cache", "tiny", "--to", "cache", "--only", "align")
    assert "3 new rows" in said and "1 pictures cannot be used" in said and "images/1.png: found bytes of no" in said
    assert "expected a folder" not in said
    assert "--to: found no folder" in refused(capsys, "cache", "tiny", "--only", "align")
    assert "--batch: found 0, expected at least 1" in refused(capsys, "cache", "tiny", "--batch", "0")

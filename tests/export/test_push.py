"""An export on a Hub that is not the Hub: complete, without duplicates, completed by a repeat, usable from there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from lightning_mllm.commands import export
from lightning_mllm.export.push import check_push, push
from lightning_mllm.inference import Model, load
from lightning_mllm.language.generation import Decoding
from tests.export.hub import TOKEN, Hub
from tests.interop.test_hf_llava import net, written

PUSH = """
import sys
from pathlib import Path
from lightning_mllm.export.push import push

push(Path(sys.argv[1]), sys.argv[2])
"""
READ = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor, model = (each.from_pretrained(sys.argv[1]) for each in (AutoProcessor, AutoModelForImageTextToText))
image = Image.open(sys.argv[2])
content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(images=image, text=text, return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
assert not [name for name in sys.modules if name.startswith("lightning")]
print(written.tolist())
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, which huggingface_hub asks in this process too."""
    with Hub() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of two large files and some small ones."""
    written(net(), tmp_path / "folder")
    (tmp_path / "folder/card").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "folder/card/0.png")
    (tmp_path / "folder/README.md").write_text("---\nlicense: unknown\n---\n\n# A net\n")
    return tmp_path / "folder"


def process(hub: Hub, home: Path, code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A Python of its own: huggingface_hub reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf"), "HF_TOKEN": TOKEN}
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**kept, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.timeout(900)
def test_a_push_is_complete_and_a_killed_one_is_completed_by_a_repeat(
    hub: Hub, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights, picture = digest(folder / "model.safetensors"), digest(folder / "card/0.png")
    hub.hold = weights
    killed = process(hub, tmp_path, PUSH, folder, "me/net")
    hub.wait_until({picture})
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    repository = hub.repositories["me/net"]
    assert repository.commits == [{}], "half a folder is on the Hub"

    hub.hold = ""
    assert push(folder, "me/net").startswith(f"{hub.url}/me/net/commit/")
    here = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert repository.files == here and len(repository.commits) == 2
    assert hub.uploads == {weights: 1, picture: 1}, "a file was sent twice"

    push(folder, "me/net")
    assert len(repository.commits) == 2, "nothing changed, and there is a new commit"

    with pytest.raises(ValueError, match="found the public repository me/net, expected a private one; nothing was"):
        push(folder, "me/net", private=True)
    hub.failing = True
    with pytest.raises(
        ValueError, match=r"is complete, but was not pushed to me/net \(.*\); repeat with: mllm"
    ) as told:
        push(folder, "me/net", again="mllm export ...")
    assert str(folder) in str(told.value) and TOKEN not in str(told.value) and len(repository.commits) == 2
    hub.failing = False

    stale = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}"}
    stale |= {"adapter_config.json": b"{}", "adapter_model.safetensors": b"2"}
    mine = {"notes.md": b"mine", "other/adapter.safetensors": b"3"}
    repository.commits.append({**repository.files, **stale, **mine})
    (folder / "README.md").write_text("# Another card\n")
    push(folder, "me/net")
    assert repository.files == {**here, "README.md": b"# Another card\n", **mine}
    push(folder, "me/hidden", private=True)
    assert hub.repositories["me/hidden"].private and hub.refused == []
    assert TOKEN not in "".join(capfd.readouterr())

    Image.new("RGB", (20, 30), (200, 0, 0)).save(tmp_path / "red.png")
    reader = process(hub, tmp_path, READ, "me/net", tmp_path / "red.png")
    out, err = reader.communicate(timeout=600)
    assert reader.returncode == 0, err
    module, few = net(), Decoding(max_new_tokens=12)
    expected = Model(module).answer(tmp_path / "red.png", "What is it?", few)
    assert module.processor.decode(json.loads(out)) == expected != ""
    assert load("me/net").answer(tmp_path / "red.png", "What is it?", few) == expected
    names = {file.name for file in (tmp_path / "cache").rglob("*")}
    assert "model.safetensors" in names and "0.png" not in names, "a reader of the weights fetched pictures"


@pytest.mark.parametrize("name", ["net", "me/", "me/net/more", "me/ne t", "me/--"])
def test_a_name_that_no_repository_has_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ValueError, match=r"--push: found '.*', expected OWNER/NAME"):
        check_push(name)


def test_a_push_needs_a_token_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_mllm.export.push.get_token", lambda: None)
    with pytest.raises(ValueError, match=r"--push: found no token of the Hub, expected one of `hf auth login` or"):
        check_push("me/net")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--private"], "--private: found no --push, expected the repository that is to be private"),
        (
            ["--adapter-only", "--dtype", "float16"],
            "--dtype: found float16 beside --adapter-only, which writes adapters",
        ),
    ],
)
def test_options_that_do_not_go_together_are_told(options: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        export.main([str(tmp_path), "--to", str(tmp_path / "folder"), *options])

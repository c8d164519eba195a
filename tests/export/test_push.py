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
from PIL import Image

from lightning_mllm.commands import export
from lightning_mllm.export.push import check_push
from lightning_mllm.inference import Model
from lightning_mllm.language.generation import Decoding
from tests.export.hub import TOKEN, Hub
from tests.interop.test_hf_llava import net, written

PUSH = """
import sys
from pathlib import Path
from lightning_mllm.export.push import push
for line in sys.stdin:
    folder, name, *private = line.split()
    try:
        print("pushed", push(Path(folder), name, private=bool(private), again="mllm export ..."), flush=True)
    except ValueError as error:
        print(error, flush=True)
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

import lightning_mllm
from lightning_mllm.language.generation import Decoding
print(lightning_mllm.load(sys.argv[1]).answer(image, "What is it?", Decoding(max_new_tokens=12)))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
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
    """A Python of its own: huggingface_hub reads the address of the Hub when it is imported."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf"), "HF_TOKEN": TOKEN}
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**kept, **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def asked(pusher: subprocess.Popen[str], folder: Path, *words: str) -> str:
    """What a process of `PUSH` says of one push."""
    assert pusher.stdin is not None and pusher.stdout is not None
    pusher.stdin.write(f"{folder} {' '.join(words)}\n")
    pusher.stdin.flush()
    told = pusher.stdout.readline().strip()
    assert told and TOKEN not in told
    return told


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.timeout(900)
def test_a_push_is_complete_and_a_killed_one_is_completed_by_a_repeat(hub: Hub, folder: Path, tmp_path: Path) -> None:
    weights, picture = digest(folder / "model.safetensors"), digest(folder / "card/0.png")
    hub.hold = weights
    killed = process(hub, tmp_path, PUSH)
    assert killed.stdin is not None
    killed.stdin.write(f"{folder} me/net\n")
    killed.stdin.flush()
    hub.wait_until({picture})
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    repository = hub.repositories["me/net"]
    assert repository.commits == [{}], "half a folder is on the Hub"

    hub.hold = ""
    pusher = process(hub, tmp_path, PUSH)
    assert asked(pusher, folder, "me/net").startswith(f"pushed {hub.url}/me/net/commit/")
    here = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert repository.files == here and len(repository.commits) == 2
    assert hub.uploads == {weights: 1, picture: 1}, "a file was sent twice"

    assert asked(pusher, folder, "me/net").startswith("pushed")
    assert len(repository.commits) == 2, "nothing changed, and there is a new commit"

    told = asked(pusher, folder, "me/net", "private")
    assert told == "--private: found the public repository me/net, expected a private one; nothing was uploaded"
    hub.failing = True
    told = asked(pusher, folder, "me/net")
    assert told.startswith(f"{folder} is complete, but was not pushed to me/net (")
    assert told.endswith("); repeat with: mllm export ...") and len(repository.commits) == 2
    hub.failing = False

    stale = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    repository.commits.append({**repository.files, **stale})
    (folder / "README.md").write_text("# Another card\n")
    assert asked(pusher, folder, "me/net").startswith("pushed")
    assert repository.files == {**here, "README.md": b"# Another card\n", "notes.md": b"mine"}
    assert asked(pusher, folder, "me/hidden", "private").startswith("pushed") and hub.repositories["me/hidden"].private
    _, err = pusher.communicate(timeout=300)
    assert TOKEN not in err and hub.refused == []

    Image.new("RGB", (20, 30), (200, 0, 0)).save(tmp_path / "red.png")
    reader = process(hub, tmp_path, READ, "me/net", tmp_path / "red.png")
    out, err = reader.communicate(timeout=600)
    assert reader.returncode == 0, err
    tokens, answer = out.splitlines()
    module = net()
    expected = Model(module).answer(tmp_path / "red.png", "What is it?", Decoding(max_new_tokens=12))
    assert answer == module.processor.decode(json.loads(tokens)) == expected != ""
    assert not list((tmp_path / "hf/hub").rglob("0.png")), "a reader of the weights fetched pictures"


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

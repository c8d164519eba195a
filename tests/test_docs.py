"""What CONTRIBUTING, AGENTS, CHANGELOG and docs/ tell a reader to type or to open exists; how-tos run as printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_mllm.cli import main
from lightning_mllm.commands.launch import ParsedCLI, compose
from tests.documents import ROOT, check_command, commands, files

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXTS = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
COMMANDS = [(path, command) for path, text in TEXTS.items() if path.name != "README.md" for command in commands(text)]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_prose_is_plain(path: Path) -> None:
    text = TEXTS[path]
    assert text.isascii()
    prose = [line for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines() if not line.startswith("|")]
    assert [line for line in prose if len(line) > 120] == []


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[f"{name(path)}: {each}" for path, each in COMMANDS])
def test_commands_exist(path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_command(command)


@pytest.mark.parametrize("path", [each for each in DOCUMENTS if each.name != "CHANGELOG.md"], ids=name)
def test_paths_exist(path: Path) -> None:
    """Of folders and files of the repository; NAME stands for the reader's own, `experiments/mine` too."""
    packages = "|".join(each.name for each in (ROOT / "lightning_mllm").iterdir() if each.is_dir())
    tops = rf"lightning_mllm|data_modules|experiments|tests|docs|{packages}"
    named = set(re.findall(rf"`((?:{tops})/[\w/.]*)`", TEXTS[path]))
    own = {each for each in named if "NAME" in each or "mine" in each or "cpu2" in each}
    absent = [each for each in named - own if not any((top / each).exists() for top in (ROOT, ROOT / "lightning_mllm"))]
    assert absent == []


def written(text: str, folder: Path) -> None:
    for path, content in files(text).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")


def own_data(folder: Path) -> None:
    """The files of docs/own_data.md, and the pictures that its records name."""
    written(TEXTS[ROOT / "docs/own_data.md"], folder)
    (folder / "photos").mkdir()
    for record in json.loads((folder / "photos.json").read_text(encoding="utf-8")):
        Image.new("RGB", (72, 72), "red").save(folder / "photos" / record["image"])


def test_own_data_trains_and_answers_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands(TEXTS[ROOT / "docs/own_data.md"]):
        capsys.readouterr()
        main(shlex.split(command)[1:])
    assert capsys.readouterr().out.strip(), "the last command asks a question"
    record = json.loads(Path("runs/mine/instruct/weights/stage.json").read_text(encoding="utf-8"))
    assert record["steps"] == 4


def test_the_blind_trained_twin_is_a_recipe_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(TEXTS[ROOT / "docs/compare.md"], tmp_path)
    monkeypatch.chdir(tmp_path)
    main(["experiments", "copy", "quickstart/llava", "--to", "experiments"])
    files = [f"--config=experiments/mine_blind/{name}.yaml" for name in ("net", "instruct")]
    parsed = compose(["fit", *files, "--hardware.micro_batch=16"], ParsedCLI)
    train = parsed.settings["data"]["init_args"]["train"]["conversations"]
    assert train["class_path"] == "data_modules.sources.Blind"


def test_two_nodes_train_as_printed(tmp_path: Path) -> None:
    """Both of torchrun's commands at once, each a node of one process."""
    own_data(tmp_path)
    written(TEXTS[ROOT / "docs/multi_node.md"], tmp_path)
    mllm = [sys.executable, "-m", "lightning_mllm.cli"]
    copy = ["experiments", "copy", "quickstart/llava", "--to", "experiments"]
    subprocess.run([*mllm, *copy], cwd=tmp_path, check=True, capture_output=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    nodes = []
    for command in commands(TEXTS[ROOT / "docs/multi_node.md"]):
        program, *arguments = shlex.split(command)
        assert program == "torchrun"
        at = arguments.index("mllm")
        told = [*torchrun, *arguments[:at], *mllm, *arguments[at + 1 :]]
        nodes.append(subprocess.Popen(told, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(printed)
    record = json.loads((tmp_path / "runs/mine/instruct/weights/stage.json").read_text(encoding="utf-8"))
    assert record["steps"] == 4

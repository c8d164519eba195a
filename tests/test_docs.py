"""What CONTRIBUTING, AGENTS, CHANGELOG and docs/ tell a reader to type or to open exists; how-tos run as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.distributed.run import get_args_parser

from lightning_mllm.cli import main
from lightning_mllm.commands.launch import ParsedCLI, compose
from tests.distributed.ranks import on_two_ranks
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


def test_two_nodes_train_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of torchrun's commands at once, each a node of one process, with the environment that torchrun gives it."""
    own_data(tmp_path)
    written(TEXTS[ROOT / "docs/multi_node.md"], tmp_path)
    monkeypatch.chdir(tmp_path)
    main(["experiments", "copy", "quickstart/llava", "--to", "experiments"])
    programs, told = [], []
    for program, *arguments in map(shlex.split, commands(TEXTS[ROOT / "docs/multi_node.md"])):
        programs.append(program)
        told.append(get_args_parser().parse_args(arguments))
    assert programs == ["torchrun"] * 2 and [each.node_rank for each in told] == [0, 1]
    assert all((each.nnodes, each.nproc_per_node, each.no_python) == ("2", "1", True) for each in told)
    assert told[0].master_addr == told[1].master_addr and told[0].master_port == told[1].master_port
    assert [each.training_script for each in told] == ["mllm"] * 2

    def node(rank: int) -> None:
        os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", GROUP_RANK=str(rank))
        rank_zero_only.rank = rank  # which Lightning reads from the environment when it is imported
        main(told[rank].training_script_args)

    on_two_ranks(node)
    record = json.loads(Path("runs/mine/instruct/weights/stage.json").read_text(encoding="utf-8"))
    assert record["steps"] == 4

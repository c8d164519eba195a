"""The built wheel, unpacked elsewhere, trains what ships with it: nothing is read from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Only what was unpacked, beside the installed libraries.
LAUNCH = """\
import sys, lightning_mllm
sys.path = [each for each in sys.path if each != {root!r}]
assert lightning_mllm.__file__.startswith({target!r}), lightning_mllm.__file__
from lightning_mllm.cli import main
for each in {commands!r}:
    main(each)
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "target")
    return folder / "target"


def test_every_experiment_is_in_the_wheel(target: Path) -> None:
    inside, outside = target / "lightning_mllm/experiments", ROOT / "experiments"
    files = {each.relative_to(outside) for each in outside.rglob("*.yaml")}
    assert {each.relative_to(inside) for each in inside.rglob("*.yaml")} == files
    assert all((inside / each).read_bytes() == (outside / each).read_bytes() for each in files)


def test_an_installed_package_draws_a_world_trains_and_is_asked(target: Path, tmp_path: Path) -> None:
    two_steps = ["--only=align", "--stage.steps=2", "--trainer.enable_progress_bar=false"]
    small = ["--stage.global_batch=2", "--hardware.micro_batch=2"]
    commands = [
        ["--version"],
        ["experiments"],
        ["world", "data/world", "--images", "40", "--texts", "8"],
        ["run", "quickstart/llava", *two_steps, *small],
        ["ask", "runs/quickstart/llava", "--image", "data/world/images/train/000000000000.png", "?"],
        ["experiments", "copy", "quickstart/llava", "--to", "mine"],
    ]
    code = LAUNCH.format(root=str(ROOT), target=str(target), commands=commands)
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr
    assert "mllm 0." in done.stdout and "quickstart/llava" in done.stdout
    assert (tmp_path / "runs/quickstart/llava/align/weights/stage.json").is_file()
    assert (tmp_path / "mine/quickstart/llava/net.yaml").is_file() and (tmp_path / "mine/_hardware/cpu.yaml").is_file()

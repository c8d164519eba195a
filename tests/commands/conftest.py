"""Toy runs that have something in common."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightning_mllm.cli import main
from tests.evaluation.expected_sets import take_test

TOY = Path(__file__).parents[1] / "toy.yaml"


def trained(run: str, seed: int, *options: str) -> None:
    main(["fit", f"--config={TOY}", f"--run_dir=runs/{run}", f"--seed_everything={seed}", *options])


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, two that start from it, and one of another stage that starts from nothing."""
    folder = tmp_path_factory.mktemp("family")
    quiet = "--trainer.enable_progress_bar=false"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        few = ("--stage.name=instruct", "--stage.epochs=2", quiet)
        trained("toy/base", 1, *few)
        # The second learns to tell the colours.
        for name, epochs in (("real", 2), ("text", 12)):
            more = ("--stage.init_from={toy/base: 1.0}", f"--stage.epochs={epochs}", "--stage.lr=0.03")
            trained(f"toy/{name}", epochs, *few, *more)
        trained("other/align", 4, "--stage.epochs=1", quiet)
    return folder


@pytest.fixture
def place(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, in the working directory."""
    shutil.copytree(family / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the sets that people expect, and runs/toy, a run that was tested on them."""
    root = tmp_path_factory.mktemp("tested")
    take_test(root)
    return root

"""Settings of the whole suite: no network, no tracker account, few threads, no progress bars."""

from __future__ import annotations

import os

# Set before anything imports the libraries that read them once at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["WANDB_SILENT"] = "true"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

import logging
import signal
from collections.abc import Callable

import pytest
import torch
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401  (the hook looks it up by name)

torch.set_num_threads(1)

# Under nohup it is ignored, by commands that tests start as well.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before anything of ours is imported.
install_import_hook(["lightning_mllm", "data_modules"], "tests.shapes.checked")


@pytest.fixture(autouse=True)
def quiet_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fault_row(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """Adds a row to the table of `make test-faults`: number of the fault (T3), figure (12 of 12), what was measured."""
    return lambda number, figure, what: record_property("fault", (number, figure, what))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of faults, where they are what was asked for."""
    if config.option.markexpr != "fault":
        return
    reports = [each for state in ("passed", "failed") for each in terminalreporter.getreports(state)]
    rows = [(*value, each.outcome) for each in reports for name, value in each.user_properties if name == "fault"]
    terminalreporter.section("faults")
    terminalreporter.line("T | figure | what")
    for number, figure, what, outcome in sorted(rows, key=lambda row: (int(row[0][1:]), row[2])):
        terminalreporter.line(f"{number} | {figure}{'' if outcome == 'passed' else ' FAILED'} | {what}")

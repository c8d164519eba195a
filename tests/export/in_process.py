"""The check of an export in this process: a fresh one imports torch and transformers anew, which takes many seconds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from subprocess import CompletedProcess
from typing import Any

import pytest

from lightning_mllm.export import export


def check_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Runs the module that `export.verify` starts, with the same arguments, here."""

    def run(command: Sequence[str], env: dict[str, str], **settings: Any) -> CompletedProcess[str]:
        told = io.StringIO()
        with redirect_stdout(told):
            code = import_module(command[2]).main(command[3:])
        return CompletedProcess(command, code, told.getvalue(), "")

    patch.setattr(export.subprocess, "run", run)

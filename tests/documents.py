"""What a Markdown file tells a reader to type: its blocks of code, the files among them, its commands."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

from lightning_mllm.cli import VERBS, main
from lightning_mllm.commands.command_line import SETTINGS, check_tree, read_command_line
from lightning_mllm.commands.config import Config, option_tree
from lightning_mllm.commands.help import asks_for_help, show_help
from lightning_mllm.commands.predict_folder import is_asked

ROOT = Path(__file__).resolve().parents[1]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    """Lines of the bash blocks, comments cut off, continued lines joined."""
    lines = [
        line
        for language, block in blocks(text)
        if language == "bash"
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [each for line in lines if (each := line.split("#")[0].strip())]


def files(text: str) -> dict[str, str]:
    """Path -> content of each block whose preceding paragraph ends with the path, in backquotes, and a colon."""
    return dict(re.findall(r"`([\w./]+)`:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL))


def check_command(command: str) -> None:
    """The program is one of the project's or of its environment, and takes what is written behind it.

    Raises:
        AssertionError, ValueError: It does not.
    """
    program, *arguments = shlex.split(command)
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert arguments[0] in targets, f"the Makefile has no {arguments[0]}"
    elif program == "torchrun":
        check_command(shlex.join(arguments[arguments.index("mllm") :]))
    elif program in ("python", "pyright"):
        named = [each for each in arguments if "/" in each]
        assert named and all((ROOT / each).exists() for each in named), f"found no {named}"
    else:
        assert program == "mllm", program
        parses(*arguments)


def parses(verb: str, *given: str) -> None:
    """The verb and its options exist; a verb that takes settings takes these."""
    assert verb in VERBS
    asked = [each for each in given if asks_for_help([each])]
    if verb in ("fit", "validate", "test", "predict") and not (verb == "predict" and is_asked(given)):
        show_help(given) if asked else read_command_line(given)
        return
    known = f"{run_help(verb, *(['FOLDER'] if verb == 'predict' else []))} "
    if verb in ("data", "bench") and given:
        known += run_help(verb, given[0])
    for each in given:
        name, equals, value = each.partition("=")
        if not each.startswith("--") or re.search(rf"{name}[ ,\]\n]", known):
            continue
        assert verb in ("run", "mix") and equals, f"{verb} has no {name}"
        stage, _, rest = name.removeprefix("--").partition(".")
        check_tree(option_tree(name.removeprefix("--") if stage in SETTINGS else rest, value), Config())


@cache
def run_help(*verb: str) -> str:
    """What `mllm VERB --help` prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    return shown.getvalue()

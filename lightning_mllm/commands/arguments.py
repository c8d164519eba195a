"""The arguments of a verb, told apart from settings, and refused in one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from lightning_mllm.commands.config import ConfigError, nearest
from lightning_mllm.commands.sweep_agent import options_of


class Arguments(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations, and whose complaints are one sentence.

    Raises:
        ConfigError: An argument is missing, unknown or of another type.
    """

    def __init__(self, verb: str, **named: str) -> None:
        super().__init__(prog=f"mllm {verb}", allow_abbrev=False, **named)  # pyright: ignore[reportArgumentType]
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            first = unknown.split()[0]
            hint = nearest(first.partition("=")[0], self.known())
            message = f"found an unknown argument {first}{hint}"
        raise ConfigError(f"{self.verb}: {message}; mllm {self.verb} --help tells more")

    def known(self) -> list[str]:
        """Its options, as written."""
        return [name for action in self._actions for name in action.option_strings]

    def with_settings(self, arguments: Sequence[str], *, bare: bool = True) -> tuple[argparse.Namespace, list[str]]:
        """Its own arguments, and the settings among them: `--stage.lr=1e-3`, `--stage.lr 1e-3`.

        Args:
            bare: Whether `stage.lr=1e-3` is a setting too, and a JSON object several.

        Raises:
            ConfigError: As for any wrong argument.
        """
        own: list[str] = []
        settings: list[str] = []
        rest = list(arguments)
        while rest:
            each = rest.pop(0)
            if bare and (several := options_of(each)) is not None:
                rest = [*several, *rest]
                continue
            name, equals, _ = each.partition("=")
            if each.startswith("--") and name not in self.known():
                settings.append(each)
                if not equals and rest and not rest[0].startswith("--"):
                    settings[-1] = f"{each}={rest.pop(0)}"
            elif bare and equals and all(part.isidentifier() for part in name.split(".")):
                rest.insert(0, f"--{each}")
            else:
                own.append(each)
        return self.parse_args(own), settings

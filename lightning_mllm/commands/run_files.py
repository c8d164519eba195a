"""The small files of a run folder, read with care: one that is damaged is told in a sentence and left as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from lightning_mllm.commands.config import ConfigError


def read_record(file: Path, remedy: str) -> dict:
    """The mapping in a JSON file; nothing where there is no file.

    Args:
        remedy: What the user may do about a damaged one.

    Raises:
        ConfigError: The file cannot be read, or holds no mapping.
    """
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the file ({error.strerror}), expected a record of this run") from None
    except (ValueError, RecursionError) as error:
        reason = "an empty file" if not file.stat().st_size else f"no JSON ({' '.join(str(error).split())})"
        raise ConfigError(f"{file}: found {reason}, expected a record of this run; {remedy}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: found a {type(found).__name__}, expected a record of this run; {remedy}")
    return found


def read_config(file: Path, remedy: str) -> Mapping[str, object]:
    """The settings in a `config.yaml` that a run wrote; as `read_record`."""
    try:
        found = yaml.safe_load(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the file ({error.strerror}), expected a run's settings") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{file}: found no YAML ({said}), expected the settings of this run; {remedy}") from None
    if not isinstance(found, Mapping) or not all(
        isinstance(found.get(name), Mapping) for name in ("model", "data", "stage", "trainer")
    ):
        raise ConfigError(f"{file}: found no settings of a run, expected what mllm fit wrote; {remedy}")
    return found

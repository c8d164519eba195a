"""The small files that a run leaves, read with care: one that is damaged is told in a sentence, and left as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

REMEDY = "put back a copy of it, or train the stage anew (--overwrite)"
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "settings": dict,
    "lineage": list,
    "init_from": dict,
    "sha256": str,
    "steps": int,
    "scores": dict,
    "samples": dict,
    "clusters": dict,
    "kinds": dict,
    "examples": list,
    "seconds": (int, float),
}
"""What is known of the fields of `stage.json` and `test.json`."""


def read_record(file: Path, remedy: str = REMEDY, needs: tuple[str, ...] = ()) -> dict:
    """The mapping in a JSON file; nothing where there is no file.

    Args:
        remedy: What the user may do about a damaged one.
        needs: Fields that must be there.

    Raises:
        ValueError: The file cannot be read, holds no mapping, or a field of another kind.
    """
    try:
        found = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(f"{file}: cannot read the file ({error.strerror}), expected a record of this run") from None
    except (ValueError, RecursionError) as error:
        reason = "an empty file" if not file.stat().st_size else f"no JSON ({' '.join(str(error).split())})"
        raise ValueError(f"{file}: found {reason}, expected a record of this run; {remedy}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: found a {type(found).__name__}, expected a record of this run; {remedy}")
    for name in needs:
        if name not in found:
            raise ValueError(f"{file}: found no '{name}', expected a record of this run; {remedy}")
    for name, kind in KINDS.items():
        if name in found and not isinstance(found[name], kind):
            was = type(found[name]).__name__
            raise ValueError(f"{file}: found a {was} as '{name}', expected a record of this run; {remedy}")
    return found


def read_stage(file: Path) -> dict:
    """A `stage.json`; nothing where there is no file.

    Raises:
        ValueError: As `read_record`.
    """
    return read_record(file)


def read_test(file: Path) -> dict:
    """A `test.json`; nothing where there is no file.

    Raises:
        ValueError: As `read_record`.
    """
    return read_record(file, "move it away to test again", ("scores",))


def read_config(
    file: Path, remedy: str = REMEDY, needs: tuple[str, ...] = ("model", "data", "stage", "trainer")
) -> dict:
    """The settings in a `config.yaml` that a run wrote; nothing where there is no file.

    Args:
        needs: Groups of settings that must be there.

    Raises:
        ValueError: The file cannot be read, or holds no such settings.
    """
    try:
        found = yaml.safe_load(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(f"{file}: cannot read the file ({error.strerror}), expected a run's settings") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{file}: found no YAML ({said}), expected the settings of this run; {remedy}") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in needs):
        raise ValueError(f"{file}: found no settings of a run, expected what mllm fit wrote; {remedy}")
    return found

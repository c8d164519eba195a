"""Weights by name: a file or folder on disk or in the package, else a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from huggingface_hub import snapshot_download

from lightning_mllm.weights.files import resource

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""OWNER/NAME."""
READ = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is fetched of a model: tensors, settings, words and templates; never code, never a pickle."""


def tensors_at(source: str, what: str) -> Path:
    """The file or folder called `source`, downloaded if it is none on this machine.

    Args:
        source: A path, which may start with `package:`, or a name on the hub.
        what: How error messages call it: the setting it was given in.

    Raises:
        ValueError: There is no such thing here, and it cannot be downloaded.
    """
    path = resource(source)
    if path.exists():
        return path
    try:
        folder = Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=["*.bin", "*.json"]))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ValueError(
            f"{what}: weights {source!r} are no folder and cannot be downloaded ({reason_of(error)})"
        ) from None
    return folder


def model_at(source: str | Path) -> Path:
    """The folder called `source`; a name OWNER/NAME that is no path here is downloaded into the hub's own cache.

    What begins with `runs`, or with a folder that is here, is meant as a path.

    Raises:
        ValueError: There is no such folder, and no such repository can be had.
    """
    path = Path(source)
    if path.exists() or not NAME.fullmatch(str(source)) or path.parts[0] == "runs" or path.parent.is_dir():
        return path
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(READ)))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ValueError(
            f"{source}: found no such folder, and no repository of this name can be had from the Hub"
            f" ({reason_of(error)}); expected a run, an exported folder or OWNER/NAME"
        ) from None


def reason_of(error: Exception) -> str:
    """The first line of an error of the hub's client, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

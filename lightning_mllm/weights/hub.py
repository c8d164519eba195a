"""Weights by name: a file or folder on disk or in the package, else a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from lightning_mllm.weights.files import resource


def tensors_at(source: str, what: str) -> Path:
    """The file or folder called `source`, downloaded if it is none on this machine.

    Args:
        source: A path, which may start with `package:`, or a name on the hub.
        what: How error messages call it: the setting it was given in.

    Raises:
        ValueError: There is no such thing here, and it cannot be downloaded.
    """
    place = resource(source)
    if place.exists():
        return place
    try:
        folder = Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=["*.bin", "*.json"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{what}: weights {source!r} are no folder and cannot be downloaded ({reason})") from None
    return folder

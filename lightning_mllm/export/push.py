"""An exported folder on the Hub, by huggingface_hub: large files first, then one commit that names them all.

A repeat asks the Hub what it has: files that are there are not sent again, and nothing new is no commit.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import httpx
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from lightning_mllm.weights.files import BESIDE
from lightning_mllm.weights.hub import NAME, reason_of

STALE = [
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json", BESIDE),
    *("adapter_model.safetensors", "adapter_config.json"),
]
"""Weights that an earlier export may have left and this one does not have: other shards, or adapters, which
transformers would load on top. Other files of the repository are their owner's."""


def check_push(name: str) -> None:
    """Raises ValueError, before anything is written, for a name that is no OWNER/NAME, or without a token."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--push: found {name!r}, expected OWNER/NAME ({reason_of(error)})") from None
    if not NAME.fullmatch(name):
        raise ValueError(f"--push: found {name!r}, expected OWNER/NAME")
    if get_token() is None:
        raise ValueError("--push: found no token of the Hub, expected one of `hf auth login` or in HF_TOKEN")


def push(folder: Path, name: str, *, private: bool = False, again: str = "") -> str:
    """Uploads a complete folder, and gives the address of its commit.

    Args:
        folder: An export.
        name: OWNER/NAME; made if there is none.
        private: Whether nobody else may read it.
        again: The command that repeats this.

    Raises:
        ValueError: It could not be uploaded, or is to be private and the repository is public; the folder stays.
    """
    api = HfApi()
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        public = private and not api.repo_info(name).private
        if not public:
            return api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="mllm export", delete_patterns=STALE
            ).commit_url
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise ValueError(
            f"{folder} is complete, but was not pushed to {name} ({reason_of(error)}); repeat with: {again}"
        ) from None
    raise ValueError(f"--private: found the public repository {name}, expected a private one; nothing was uploaded")


def command(run: Path, to: Path, name: str, options: list[str]) -> str:
    """The command that pushes again."""
    return shlex.join(["mllm", "export", str(run), "--to", str(to), "--push", name, *options])

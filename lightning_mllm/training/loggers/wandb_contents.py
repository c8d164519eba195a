"""What a run of W&B is given beside numbers: tables with pictures, and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def table(key: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> dict[str, Any]:
    """A table, and what its pictures show as captioned images."""
    import wandb

    def shown(cell: object) -> object:
        return wandb.Image(cell) if isinstance(cell, Image.Image) else cell

    made = wandb.Table(columns=list(columns), data=[[shown(cell) for cell in row] for row in rows])
    found: dict[str, Any] = {key: made}
    pictures = [
        wandb.Image(cell, caption=" | ".join(str(other) for other in row if not isinstance(other, Image.Image)))
        for row in rows
        for cell in row
        if isinstance(cell, Image.Image)
    ]
    if pictures:
        found[f"{key}_pictures"] = pictures
    return found


def log_files(run: Any, folder: Path, name: str, kind: str, facts: Mapping[str, object], used: bool) -> None:
    """The files of a folder as an artifact that a run made, or that it used."""
    import wandb

    artifact = wandb.Artifact(name.replace("/", "-"), type=kind, metadata=dict(facts))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            inner = path.relative_to(folder).as_posix()
            artifact.add_file(str(path), name=inner, policy="immutable", skip_cache=True)
    if used:
        # What `use_artifact` does, which refuses to be offline and waits until all is uploaded.
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    else:
        run.log_artifact(artifact)

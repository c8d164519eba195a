"""Where an open_clip model comes from: its configuration, its pixel statistics and its file of weights."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor

from lightning_mllm.vision.encoder import Statistic
from lightning_mllm.weights.files import PACKAGE, TensorFiles, resource
from lightning_mllm.weights.plain_files import read_object

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
"""What open_clip itself writes into, and reads from, a folder (`local-dir:`)."""


@dataclass(frozen=True)
class OpenClipSource:
    """One open_clip model, by name, by file or stated inline."""

    model: str
    """A name of open_clip's own list, a JSON configuration, or a folder of `open_clip_config.json` and weights."""
    weights: str | None
    """None: fresh; "": the folder's own; else a file of tensors or one of open_clip's tags for `model`."""
    config: Mapping[str, Any] | None
    """The configuration itself, in place of `model`."""

    @property
    def folder(self) -> Path | None:
        place = resource(self.model) if self.config is None and self.model else None
        return place if place is not None and place.is_dir() else None

    @property
    def title(self) -> str:
        return self.model or "the tower's config"

    def read(self) -> dict[str, Any]:
        """The whole JSON; a bare model configuration is what stands under `model_cfg`.

        Raises:
            ValueError: There is no such model, or its JSON lacks what a model needs.
        """
        if self.config is not None:
            found: Any = self.config
        elif not self.model:
            raise ValueError("vision: found neither model nor config, expected one of them")
        elif (named := open_clip.get_model_config(self.model)) is not None:
            found = named
        else:
            found = _read_json(self.model)
        whole = dict(found) if "model_cfg" in found else {"model_cfg": found}
        for key in ("embed_dim", "vision_cfg", "text_cfg"):
            if key not in whole["model_cfg"]:
                raise ValueError(f"{self.title}: found no {key}, expected a configuration of open_clip")
        return whole

    def model_config(self) -> dict[str, Any]:
        return dict(self.read()["model_cfg"])

    def statistics(self) -> tuple[Statistic, Statistic]:
        """Mean and standard deviation of RGB in [0, 1]; OpenAI CLIP's where the source names none."""
        stated: Mapping[str, Any] = self.read().get("preprocess_cfg", {})
        if self.weights:
            stated = get_pretrained_cfg(self.model, self.weights) or stated
        mean = tuple(stated.get("mean", OPENAI_DATASET_MEAN))
        std = tuple(stated.get("std", OPENAI_DATASET_STD))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"{self.title}: found mean {mean} and std {std}, expected three numbers each")
        return mean, std

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]] | None:
        """The tensors of the whole model under open_clip's names, one at a time; None if declared fresh.

        Args:
            prefix: Only those whose names begin with it are read.

        Raises:
            ValueError: There are no such weights, or they cannot be had.
        """
        return None if self.weights is None else _below(self._file(self.weights), prefix)

    def _file(self, weights: str) -> Path:
        if weights == "":
            folder = self.folder
            if folder is None:
                tags = self._tags()
                raise ValueError(f"{self.title}: has no weights of its own, expected weights: null, a file or {tags}")
            if not (folder / WEIGHTS).is_file():
                raise ValueError(f"{folder}: found no {WEIGHTS}, expected one beside {CONFIG}, or weights: null")
            return folder / WEIGHTS
        if weights.startswith(PACKAGE) or Path(weights).expanduser().is_file():
            return resource(weights)
        published = get_pretrained_cfg(self.model, weights)
        if not published:
            raise ValueError(f"weights: found {weights!r}, which is no file, expected one or {self._tags()}")
        if published.get("quick_gelu", False) != self.model_config().get("quick_gelu", False):
            raise ValueError(
                f"{self.model}: the activation is not the one that weights {weights!r} were trained with, expected "
                f"the model name {'with' if published.get('quick_gelu') else 'without'} the ending -quickgelu"
            )
        try:
            return Path(download_pretrained(published))
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.model}, weights {weights!r}: cannot be downloaded ({reason})") from None

    def _tags(self) -> str:
        return f"a tag of open_clip ({', '.join(list_pretrained_tags_by_model(self.model)) or 'it has none'})"


def _read_json(model: str) -> dict[str, Any]:
    place = resource(model)
    file = place / CONFIG if place.is_dir() else place
    if not os.path.lexists(file):
        near = difflib.get_close_matches(model, open_clip.list_models(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"vision.model: found {model!r}, expected a name of open_clip (the nearest is {near!r}), "
            f"a JSON configuration or a folder with {CONFIG}"
        )
    return read_object(file, "a configuration of open_clip")


def _below(file: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    files = TensorFiles(file)
    for name in files:
        if (plain := name.removeprefix("module.")).startswith(prefix):
            yield plain, files[name]

"""What a source found out about its files, kept as `offset_index` says: by which key, and when it holds no more."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_modules.containers.offset_index import fingerprint, key_of, texts, texts_in
from data_modules.containers.opening import bytes_of
from data_modules.sources.image_folder import image_roots
from lightning_mllm import boxes, contracts

HERE = Path(__file__).parent


class Given:
    """Remembers what it is made with, by which its checks are known."""

    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *given: object, **named: object) -> Self:
        made = super().__new__(cls)
        made._given = given, named
        return made

    def settings_key(self) -> str:
        """A digest of the class, its code and its settings; paths count as they are written."""
        cls = type(self)
        bound = inspect.signature(cls.__init__).bind(self, *self._given[0], **self._given[1])
        bound.apply_defaults()
        settings = sorted((name, repr(value)) for name, value in bound.arguments.items() if name != "self")
        return key_of(f"{cls.__module__}.{cls.__qualname__}", code_key(cls), settings, image_roots())

    def given_bytes(self) -> int:
        """The size of the files of records that the settings name."""
        values = [*self._given[0], *self._given[1].values()]
        names = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
        return bytes_of([each for each in names if isinstance(each, str)])


@cache
def code_key(cls: type) -> str:
    """A digest of the code and the templates that records are checked with."""
    own = {inspect.getsourcefile(each) for each in cls.__mro__ if each.__module__ not in ("builtins", "abc", "typing")}
    beside = [
        *(HERE.parent / "containers").glob("*.py"),
        *(HERE.parent / "dialects").glob("*.py"),
        *(HERE.parent / "templates").glob("*.yaml"),
    ]
    ours = [*HERE.glob("*.py"), *beside, Path(boxes.__file__), Path(contracts.__file__)]
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({str(path) for path in ours} | {path for path in own if path}):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def states(files: Iterable[str | Path], folders: Iterable[str | Path]) -> np.ndarray:
    """Which files and folders were looked at, and in which state they were."""
    each = [f"{fingerprint(path)} {path}" for path in sorted(map(str, files))]
    return texts([*each, *(f"{_changed(path)} {path}" for path in sorted(map(str, folders)))])


def still(array: np.ndarray) -> bool:
    """Whether everything is in the state that `states` noted."""
    for each in set(texts_in(array)):
        state, _, path = each.partition(" ")
        try:
            if state != (fingerprint(path) if os.path.isfile(path) else _changed(path)):
                return False
        except ValueError:
            return False
    return True


def _changed(folder: str) -> str:
    """When something in a folder was added, removed or renamed."""
    return str(os.stat(folder).st_mtime_ns) if os.path.isdir(folder) else "none"

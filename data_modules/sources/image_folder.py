"""The folder that a source's image names are relative to: what is in it, and what only seems to be."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path, PurePosixPath

from data_modules.containers.reading import RecordError, not_found, regular

BESIDES = "MLLM_IMAGE_ROOTS"
"""Further folders that links in a folder of images may lead to, as in PATH; / for any."""


def image_roots() -> str:
    """What the environment says of them, by which checks of records are known."""
    return os.environ.get(BESIDES, "")


class ImageFolder:
    """A folder of images, listed once for each subfolder instead of asked once for each file.

    Links are followed as long as they lead to regular files inside the folder, or inside of `MLLM_IMAGE_ROOTS`.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._names: dict[str, set[str]] = {}
        self._odd: dict[str, set[str]] = {}
        """Of a folder the names that are no plain files: links, folders, pipes, devices."""
        self._led: dict[str, str] = {}
        """Of a folder what is wrong with where it is, or nothing."""

    @property
    def listed(self) -> list[str]:
        """The folders that were looked into."""
        return list(self._names)

    def check(self, name: str) -> str:
        """`name` relative to the folder, if that file exists; RecordError otherwise."""
        if not self.root:
            raise RecordError(f"names the image '{name}', expected none because no images folder is given")
        path = PurePosixPath(name)
        if not path.name or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise RecordError(f"image is '{name}', expected a path inside {self.root}")
        folder = os.path.join(self.root, path.parent)
        if folder not in self._names and not os.path.isdir(self.root):
            raise not_found(self.root)
        if path.name not in self._listed(folder):
            raise RecordError(f"image {os.path.join(self.root, name)} not found{self._near(path)}")
        if wrong := self._wrong(folder, path.name):
            raise RecordError(f"image {os.path.join(self.root, name)}: {wrong}")
        return str(path)

    def _wrong(self, folder: str, name: str) -> str:
        """Why a name of a folder is no image of this folder; empty where nothing tells."""
        if folder not in self._led:
            self._led[folder] = self._outside(folder)
        if self._led[folder] or name not in self._odd[folder]:
            return self._led[folder]
        path = os.path.join(folder, name)
        try:
            regular(path)
        except ValueError as error:
            return str(error).removeprefix(f"{path}: ")
        return self._outside(path)

    def _outside(self, path: str) -> str:
        """That a path leads out of the folder; empty where it does not."""
        real = Path(os.path.realpath(path))
        if any(real.is_relative_to(root) for root in self._roots):
            return ""
        return f"found a link to {real}, expected one inside {self.root} ({BESIDES} names further folders)"

    @cached_property
    def _roots(self) -> list[str]:
        """Where links may lead, without links."""
        return [os.path.realpath(each) for each in (self.root, *image_roots().split(os.pathsep)) if each]

    def _listed(self, folder: str) -> set[str]:
        if folder not in self._names:
            names, odd = set[str](), set[str]()
            try:
                with os.scandir(folder) as entries:
                    for each in entries:
                        names.add(each.name)
                        if not each.is_file(follow_symlinks=False):
                            odd.add(each.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:  # not ours to read, a link to itself, a name that is too long
                raise RecordError(f"folder {folder}: cannot be read ({error.strerror})") from None
            self._names[folder], self._odd[folder] = names, odd
        return self._names[folder]

    def _near(self, path: PurePosixPath) -> str:
        """The file whose name differs in case or in the form of its letters (NFC, NFD) alone, for the error."""
        found = PurePosixPath()
        for part in path.parts:
            names = self._listed(os.path.join(self.root, found))
            near = [part] if part in names else sorted(each for each in names if _folded(each) == _folded(part))
            if not near:
                return ""
            found /= near[0]
        same = unicodedata.normalize("NFC", str(found)) == unicodedata.normalize("NFC", str(path))
        return f", but {found} is: the names differ in {'their Unicode form (NFC, NFD)' if same else 'case'} alone"

    def path(self, name: str) -> Path:
        return Path(self.root, name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

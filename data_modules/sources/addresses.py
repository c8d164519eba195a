"""Pictures that records name by their address on the internet, in place of files in a folder.

images: https://                       records hold whole addresses, https alone
images: http://                        the same, of either scheme
images: https://host/train2017         records hold names below that address, or whole addresses
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from data_modules.containers.offset_index import cache_folder
from data_modules.sources.records import ImageFolder, RecordError
from data_modules.web.download import Limits, Web, checked_url, download, shown
from data_modules.web.image_cache import ImageCache, most_bytes
from lightning_mllm.contracts import ImageFile, ImageRef

SCHEMES = {"https://": ("https",), "http://": ("http", "https")}

_caches: dict[Path, ImageCache] = {}


@dataclass(frozen=True)
class ImageUrl:
    """A picture at a public address, downloaded when it is read for the first time (data_modules/web)."""

    url: str
    schemes: tuple[str, ...] = ("https",)
    size: tuple[int, int] | None = None
    """As of `ImageFile`."""
    web: Web | None = None
    """None for the internet."""

    @property
    def name(self) -> str:
        """Its address, without a query."""
        return shown(self.url)

    def read(self, max_bytes: int) -> bytes:
        """The encoded bytes, as `ImageRef`; at most 20 MiB, in at most 20 seconds."""
        limits = Limits(max_bytes=min(max_bytes, Limits.max_bytes))
        try:
            return _cache().get(self.url, lambda: download(self.url, limits, self.web, self.schemes))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


def _cache() -> ImageCache:
    folder = cache_folder("images")
    if folder not in _caches:
        _caches[folder] = ImageCache(folder, most_bytes())
    return _caches[folder]


class ImageAddresses(ImageFolder):
    """In place of a folder: names are addresses, or stand behind one. Whether a picture is there is not asked ahead."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.schemes = next(schemes for start, schemes in SCHEMES.items() if root.startswith(start))
        self.base = "" if root in SCHEMES else root.rstrip("/") + "/"
        if self.base:
            checked_url(self.base, self.schemes)

    def check(self, name: str) -> str:
        """The name itself, if it is an address of the scheme, or a name below the base; RecordError otherwise."""
        try:
            checked_url(self._url(name), self.schemes)
        except ValueError as error:
            raise RecordError(f"image '{shown(name)[:200] if '://' in name else name[:200]}': {error}") from None
        return name

    def _url(self, name: str) -> str:
        return name if "://" in name or not self.base else self.base + quote(name)

    def ref(self, name: str, size: tuple[int, int] | None = None) -> ImageRef:
        return ImageUrl(self._url(name), self.schemes, size)


def image_folder(root: str) -> ImageFolder:
    """The folder that a source's `images` names, or the addresses.

    Raises:
        ValueError: it begins as an address and is none.
    """
    return ImageAddresses(root) if root.startswith(tuple(SCHEMES)) else ImageFolder(root)


def image_at(folder: ImageFolder, name: str, size: tuple[int, int] | None = None) -> ImageRef:
    """The picture that a record calls so."""
    return folder.ref(name, size) if isinstance(folder, ImageAddresses) else ImageFile(folder.path(name), size)

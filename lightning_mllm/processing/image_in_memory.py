"""Pictures that are open already, in place of files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from io import BytesIO

from PIL import Image

from lightning_mllm.processing.images import ORIENTATION, ImageLimits, rgb


@dataclass(frozen=True)
class ImageInMemory:
    """A picture that is open already; it becomes RGB as its file would, and is known by its content."""

    image: Image.Image

    @property
    def name(self) -> str:
        """Tells pictures of different content apart."""
        return self._name

    @cached_property
    def _name(self) -> str:
        image = self.image
        try:
            pixels = image.tobytes()
        except Exception:
            return "the given picture"  # decoding says what is wrong with it
        facts = (image.mode, image.size, dict(image.getexif()).get(ORIENTATION), image.info.get("transparency"))
        palette = b"" if image.palette is None else bytes(image.palette.palette)
        digest = blake2b(pixels + palette + repr(facts).encode(), digest_size=8)
        return f"the given picture {digest.hexdigest()}"

    def read(self, max_bytes: int) -> bytes:
        """For what reads files alone: a PNG of the upright picture; `decode_image` takes the picture itself."""
        stream = BytesIO()
        rgb(self.image, ImageLimits(), "upright").save(stream, format="PNG")
        if stream.tell() > max_bytes:
            raise ValueError(f"{self.name}: found {stream.tell()} bytes as PNG, expected at most {max_bytes}")
        return stream.getvalue()

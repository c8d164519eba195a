from __future__ import annotations

import io
import os
import pickle
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from lightning_mllm.contracts import ImageFile as FileRef
from lightning_mllm.processing.image_in_memory import ImageInMemory
from lightning_mllm.processing.images import FORMATS, ImageError, ImageLimits, decode_image

PHOTOS = Path(__file__).resolve().parents[2] / "../shared/data/coco_mini/val2017"


@dataclass(frozen=True)
class Bytes:
    data: bytes
    name: str = "some/image.png"

    def read(self, max_bytes: int) -> bytes:
        return self.data


def gradient(width: int = 24, height: int = 16) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PHOTO = Image.fromarray(gradient())
PNG, JPEG = saved(PHOTO), saved(PHOTO, "JPEG", quality=95)
SHADES = np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.uint16)


def decoded(data: bytes, limits: ImageLimits = ImageLimits()) -> np.ndarray:
    image = decode_image(Bytes(data), limits)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds nearly nothing."""

    return png(width, height, 8, 2, bytes(100))


def png(width: int, height: int, bits: int, colour: int, pixels: bytes, transparent: bytes = b"") -> bytes:
    """A PNG of these rows, a filter byte before each; `colour` 0 is grey, 2 is RGB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    hole = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + hole + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "a" * 80_000_000, zip=True)
    return saved(PHOTO, pnginfo=info)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "no known image format"),
    "random bytes": (lambda: random.Random(0).randbytes(5000), "no known image format"),
    "html": (lambda: b"<!doctype html><html><body>404 Not Found</body></html>", "no known image format"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "no known image format"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "no known image format"),
    "pickle": (lambda: pickle.dumps({"a": list(range(99))}), "no known image format"),
    "ppm, not on the list": (lambda: saved(PHOTO, "PPM"), "no known image format"),
    "truncated jpeg": (lambda: JPEG[:-60], "truncated"),
    "truncated png": (lambda: PNG[: len(PNG) * 2 // 3], "truncated"),
    "truncated webp": (lambda: saved(PHOTO, "WEBP")[:-40], ""),
    "truncated gif": (lambda: saved(PHOTO, "GIF")[:-40], "truncated"),
    "truncated bmp": (lambda: saved(PHOTO, "BMP")[:-40], "truncated"),
    "truncated tiff": (lambda: saved(PHOTO, "TIFF")[:-400], ""),
    "png with a flipped byte": (lambda: flipped(PNG, len(PNG) // 2), ""),
    "float tiff": (lambda: saved(Image.fromarray(gradient()[..., 0] / 255.0).convert("F"), "TIFF"), "floating-point"),
    "32-bit tiff": (lambda: saved(Image.fromarray(gradient()[..., 0].astype(np.int32)), "TIFF"), "32-bit integer"),
    "20000 x 20000": (lambda: png_header(20000, 20000), "400000000 pixels"),
    "144 megapixels": (lambda: png_header(12000, 12000), "144000000 pixels, expected at most 49000000"),
    "81 megapixels": (lambda: png_header(9000, 9000), "81000000 pixels, expected at most 49000000"),
    "one very long side": (lambda: png_header(30000, 1), "sides of at most 20000"),
    "text-chunk bomb": (text_bomb, ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, reason = REFUSED[name]
    with warnings.catch_warnings(), pytest.raises(ImageError) as caught:
        warnings.simplefilter("error")
        decode_image(Bytes(make()))
    assert str(caught.value).startswith("some/image.png: ")
    assert "\n" not in str(caught.value)
    assert reason in str(caught.value)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


ALPHA = (gradient()[..., 1] // 2 + 60).astype(np.uint8)
GREY = gradient()[..., 0]
RGBA = Image.fromarray(np.dstack([gradient(), ALPHA]))
LA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
grey3 = np.repeat(GREY[..., None], 3, -1)


def palette_with_hole() -> Image.Image:
    image = Image.fromarray(GREY // 64).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    return image


HOLE = np.array([[255, 255, 255], [0, 200, 0], [0, 0, 200], [9, 9, 9]])[GREY // 64]
SIXTEEN = np.repeat((SHADES / 257)[..., None], 3, -1)
BITS = np.repeat(np.where(GREY > 127, 255, 0)[..., None], 3, -1)
CMYK = Image.fromarray(np.dstack([255 - gradient(), np.zeros_like(GREY)]), "CMYK")
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", PHOTO.size, (1, 2, 3))]}

ACCEPTED: dict[str, tuple[bytes, np.ndarray, float]] = {
    "png": (PNG, gradient(), 0),
    "jpeg": (JPEG, gradient(), 12),
    "bmp": (saved(PHOTO, "BMP"), gradient(), 0),
    "tiff": (saved(PHOTO, "TIFF"), gradient(), 0),
    "webp": (saved(PHOTO, "WEBP", lossless=True), gradient(), 0),
    "grey": (saved(Image.fromarray(GREY)), grey3, 0),
    "1-bit": (saved(Image.fromarray(GREY > 127)), BITS, 0),
    "16-bit png": (saved(Image.fromarray(SHADES)), SIXTEEN, 1),
    "16-bit tiff": (saved(Image.fromarray(SHADES), "TIFF"), SIXTEEN, 1),
    "16-bit grey with a hole": (
        png(3, 1, 16, 0, struct.pack(">x3H", 0x1234, 0x1235, 0), struct.pack(">H", 0x1234)),
        np.array([[[255] * 3, [18] * 3, [0] * 3]]),
        1,
    ),
    "16-bit rgb with a hole": (
        png(2, 1, 16, 2, struct.pack(">x6H", 0x1234, 0, 0, 0x9900, 0, 0), struct.pack(">3H", 0x1234, 0, 0)),
        np.array([[[255, 255, 255], [0x99, 0, 0]]]),
        0,
    ),
    "palette with a hole": (saved(palette_with_hole(), transparency=0), HOLE, 0),
    "rgba": (saved(RGBA), over_white(gradient(), ALPHA), 1),
    "rgba webp": (saved(RGBA, "WEBP", lossless=True, exact=True), over_white(gradient(), ALPHA), 1),
    "rgba tiff": (saved(RGBA, "TIFF"), over_white(gradient(), ALPHA), 1),
    "grey and alpha": (saved(LA), over_white(grey3, ALPHA), 1),
    "cmyk jpeg": (saved(CMYK, "JPEG", quality=98), gradient(), 12),
    "cmyk tiff": (saved(CMYK, "TIFF"), gradient(), 1),
    "animated webp": (saved(PHOTO, "WEBP", lossless=True, **FRAMES), gradient(), 0),
    "bytes after the end": (PNG + b"trailing" * 100, gradient(), 0),
    "one pixel": (saved(Image.new("RGB", (1, 1), (4, 5, 6))), np.array([[[4, 5, 6]]]), 0),
    "1 x 5000": (saved(Image.new("RGB", (1, 5000), (4, 5, 6))), np.full((5000, 1, 3), [4, 5, 6]), 0),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    data, expected, tolerance = ACCEPTED[name]
    pixels = decoded(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= tolerance


def test_the_first_frame_of_an_animated_gif() -> None:
    colours = [Image.new("RGB", (9, 7), colour) for colour in [(255, 0, 0), (0, 255, 0)]]
    pixels = decoded(saved(colours[0], "GIF", save_all=True, append_images=colours[1:]))
    assert pixels.shape == (7, 9, 3) and (pixels == [255, 0, 0]).all()


def test_a_flipped_byte_in_a_jpeg_is_refused_or_decoded_to_rgb() -> None:
    """Most of such damage still decodes, and some changes the size in the header: no decoder can know better."""
    modes = []
    for at in range(0, len(JPEG), 7):
        try:
            modes.append(decode_image(Bytes(flipped(JPEG, at))).mode)
        except ImageError:
            modes.append("refused")
    assert set(modes) == {"RGB", "refused"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture has to be turned 90 degrees clockwise
    exif[0x010E] = "x" * 20_000
    options = {"quality": 98} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    pixels = decoded(saved(PHOTO, kind, exif=exif, **options))
    assert pixels.shape == (24, 16, 3)
    assert np.abs(pixels - np.rot90(gradient(), -1)).max() <= 12


OPEN: dict[str, Image.Image] = {
    "rgb": PHOTO,
    "grey": Image.fromarray(GREY),
    "1-bit": Image.fromarray(GREY > 127),
    "16-bit": Image.fromarray(SHADES),
    "palette": palette_with_hole(),
    "rgba": RGBA,
    "grey and alpha": LA,
    "cmyk": CMYK,
    "ycbcr": PHOTO.convert("YCbCr"),
    "lab": ImageCms.profileToProfile(
        PHOTO, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    ),  # pyright: ignore[reportAssignmentType]
}
KINDS = {"cmyk": "TIFF", "ycbcr": "TIFF", "lab": "TIFF"}


@pytest.mark.parametrize("decode", ["upright", "stored"])
@pytest.mark.parametrize("name", OPEN)
def test_a_picture_given_open_is_its_file(name: str, decode: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    # Pillow 12.3 cannot read the uncompressed YCbCr that it writes.
    options: Any = {"palette": {"transparency": 0}, "ycbcr": {"compression": "tiff_lzw"}}.get(name, {})
    data = saved(OPEN[name], KINDS.get(name, "PNG"), exif=exif, **options)
    opened = Image.open(io.BytesIO(data))
    before = opened.mode
    given = decode_image(ImageInMemory(opened), decode=decode)
    assert given.mode == "RGB" and opened.mode == before
    # Pillow itself turns TIFFs.
    upright = decode == "upright" or name in KINDS
    assert given.size == ((16, 24) if upright else (24, 16))
    assert np.array_equal(np.asarray(given), np.asarray(decode_image(Bytes(data), decode=decode)))
    # What reads files alone is given the upright picture.
    again = decode_image(Bytes(ImageInMemory(opened).read(2**20)))
    assert np.array_equal(np.asarray(again), np.asarray(decode_image(Bytes(data))))
    if name in ("ycbcr", "lab"):
        assert np.abs(np.asarray(given).astype(int) - np.rot90(gradient(), 1)).mean() < 2


def test_stored_pixels_are_those_of_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image, kind, options in (
        (PHOTO, "JPEG", {"exif": exif}),
        (RGBA, "PNG", {"exif": exif}),
        (palette_with_hole(), "PNG", {"transparency": 0}),
        (LA, "PNG", {}),
        (Image.fromarray(SHADES), "PNG", {}),
    ):
        data = saved(image, kind, **options)
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert np.array_equal(np.asarray(decode_image(Bytes(data), decode="stored")), np.asarray(expected))
        assert not np.array_equal(np.asarray(decode_image(Bytes(data))), np.asarray(expected))


def test_open_pictures_are_known_by_their_content() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = [
        PHOTO,
        RGBA,
        Image.open(io.BytesIO(saved(PHOTO, exif=turned))),
        Image.fromarray(GREY),
        palette_with_hole(),
    ]
    names = [ImageInMemory(picture).name for picture in pictures]
    assert len(set(names)) == len(names) and all(name.startswith("the given picture ") for name in names)
    assert ImageInMemory(Image.open(io.BytesIO(PNG))).name == ImageInMemory(PHOTO.copy()).name == names[0]


def test_open_pictures_are_refused_as_files_are() -> None:
    for picture, limits, reason in (
        (PHOTO, ImageLimits(max_pixels=383), "24 x 16 = 384 pixels, expected at most 383"),
        (Image.fromarray(GREY / 255.0).convert("F"), ImageLimits(), "found floating-point pixels"),
        (Image.open(io.BytesIO(JPEG[:-60])), ImageLimits(), "truncated"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode_image(ImageInMemory(picture), limits)


def test_the_extension_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(PNG)
    assert np.array_equal(np.asarray(decode_image(FileRef(path))), gradient())


def test_limits_are_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    with pytest.raises(ImageError, match=rf"photo.png: found {len(PNG)} bytes, expected at most 100"):
        decode_image(FileRef(path), ImageLimits(max_bytes=100))
    with pytest.raises(ImageError, match="expected at most 100"):
        decode_image(Bytes(PNG), ImageLimits(max_bytes=100))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded before its size was checked"))
    with pytest.raises(ImageError, match="24 x 16 = 384 pixels, expected at most 383"):
        decode_image(Bytes(PNG), ImageLimits(max_pixels=383))
    with pytest.raises(ImageError, match="24 x 16 pixels, expected sides of at most 23"):
        decode_image(Bytes(PNG), ImageLimits(max_side=23))


def test_a_missing_file_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(FileRef(tmp_path / "gone.png"))
    assert str(caught.value) == f"{tmp_path}/gone.png: cannot read the image (No such file or directory)"


@pytest.mark.fault
def test_damaged_files_raise_nothing_but_image_errors(fault_row: Callable[[str, str, str], None]) -> None:
    rng = random.Random(0)
    good = [saved(PHOTO, kind) for kind in FORMATS] + [saved(RGBA), saved(palette_with_hole(), "GIF", transparency=0)]
    refused, count = 0, 10_000 if os.environ.get("MLLM_FULL") == "1" else 300
    for _ in range(count):
        data = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 1, 2])] = rng.randbytes(rng.choice([0, 1, 1, 4]))
        try:
            assert decode_image(Bytes(bytes(data)), ImageLimits(max_pixels=10**6)).mode == "RGB"
        except ImageError:
            refused += 1
    assert count / 4 < refused < count
    fault_row("T17", f"{count:,} of {count:,}", "mutated images: RGB, or a sentence with the file")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the COCO excerpt is not beside the checkout")
def test_real_photographs() -> None:
    paths = sorted(PHOTOS.glob("*.jpg"))[:8]
    assert paths
    for path in paths:
        assert min(decode_image(FileRef(path)).size) > 100

"""What becomes of each kind of file that lies in a folder of images, written down, and what it costs.

Every kind is right within a stated tolerance, or refused with one sentence that names the file; none takes more than
250 MB, or (measured where MLLM_FULL=1) more than half a second of a core.
"""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_mllm.contracts import ImageFile
from lightning_mllm.processing.images import ImageError, ImageLimits, decode_image
from tests.processing.test_decode import (
    ACCEPTED,
    JPEG,
    PHOTO,
    PNG,
    REFUSED,
    SHADES,
    SIXTEEN,
    flipped,
    gradient,
    png,
    saved,
)

FULL = os.environ.get("MLLM_FULL") == "1"
MEMORY, SECONDS = 250e6, 0.5


def bits(side: int) -> bytes:
    """A PNG of 1-bit pixels that are all white: a few KB however large it is."""
    rows = (b"\0" + b"\xff" * (side // 8)) * side
    return png(side, side, 1, 0, rows)


def chunk(name: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def exif(size: int, orientation: int = 6) -> Image.Exif:
    made = Image.Exif()
    made[0x0112], made[0x010E] = orientation, "x" * size
    return made


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes 500 times more."""
    data = saved(PHOTO, "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * 500 + data[-2:]


def large_chunk() -> bytes:
    """A PNG with 5 MB of EXIF."""
    return saved(PHOTO, exif=exif(5_000_000))


TURNED = np.rot90(gradient(), -1)
WHITE = np.full((1, 1, 3), 255)
GIF = [Image.new("RGB", (9, 7), colour) for colour in [(255, 0, 0), (0, 255, 0)]]
Made = bytes | Callable[[], bytes]


def accepted(name: str) -> tuple[Made, Any, float]:
    return ACCEPTED[name]


RIGHT: dict[str, tuple[Made, Any, float]] = {
    "CMYK JPEG: its colours": accepted("cmyk jpeg"),
    "8-bit grey: grey": accepted("grey"),
    "1-bit: black and white": accepted("1-bit"),
    "16-bit PNG: scaled to 8 bits": (saved(Image.fromarray(SHADES)), SIXTEEN, 2),
    "16-bit TIFF: scaled to 8 bits": (saved(Image.fromarray(SHADES), "TIFF"), SIXTEEN, 2),
    "palette and alpha: over white": accepted("palette with a hole"),
    "RGBA: over white": accepted("rgba"),
    "grey and alpha: over white": accepted("grey and alpha"),
    "animated GIF: the first frame": (
        saved(GIF[0], "GIF", save_all=True, append_images=GIF[1:]),
        np.full((7, 9, 3), [255, 0, 0]),
        0,
    ),
    "animated WebP: the first frame": accepted("animated webp"),
    "EXIF orientation 6: turned": (saved(PHOTO, "JPEG", quality=98, exif=exif(10)), TURNED, 12),
    "a segment full of EXIF: turned": (saved(PHOTO, "JPEG", quality=98, exif=exif(60_000)), TURNED, 12),
    "1 x 1: itself": accepted("one pixel"),
    "1 x 5000: itself": accepted("1 x 5000"),
    "bytes behind the end: left out": accepted("bytes after the end"),
    "PNG called .jpg: a PNG": (PNG, gradient(), 0),
    "7000 x 7000 of 1 bit: white": (lambda: bits(7000), WHITE, 0),
}
WRONG: dict[str, tuple[Made, str]] = {
    "no bytes": (b"", "no known image format"),
    **{f"{name}: refused": REFUSED[name] for name in ("random bytes", "html", "svg", "eps", "pickle")},
    **{f"{name}: refused": REFUSED[name] for name in ("truncated jpeg", "truncated png", "png with a flipped byte")},
    **{f"{name}: refused": REFUSED[name] for name in ("float tiff", "20000 x 20000", "text-chunk bomb")},
    "5 MB of EXIF: refused, or turned": (large_chunk, ""),
    "64 megapixels of 1 bit: refused": (lambda: bits(8000), "64000000 pixels, expected at most 49000000"),
    "81 megapixels of 1 bit: refused": (lambda: bits(9000), "81000000 pixels, expected at most 49000000"),
    "144 megapixels of 1 bit: refused": (lambda: bits(12000), "144000000 pixels, expected at most 49000000"),
    "JPEG of 500 scans: refused": (many_scans, r"a JPEG of \d+ scans, expected at most 100"),
    "JPEG with a flipped byte: any RGB, or refused": (lambda: flipped(JPEG, len(JPEG) * 2 // 3), ""),
}
EITHER = {name for name in WRONG if ", or " in name}
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a named pipe": (os.mkfifo, "found no regular file, expected an image"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "found no regular file, expected an image"),
    "a folder": (lambda path: path.mkdir(), "found no regular file, expected an image"),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot read the image"),
    "a socket": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "found no regular file"),
    "what waits for the kernel": (lambda path: path.symlink_to("/proc/kmsg"), "no known image format|cannot read"),
    "secrets of the process": (lambda path: path.symlink_to("/proc/self/environ"), "no known image format"),
    "a table without an end": (lambda path: path.symlink_to("/proc/self/pagemap"), "no known image format"),
}
assert len(RIGHT) + len(WRONG) + len(FILES) >= 32


def written(path: Path, made: Made) -> ImageFile:
    path.write_bytes(made if isinstance(made, bytes) else made())
    return ImageFile(path)


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def costs(ref: ImageFile) -> tuple[float, float]:
    """Memory in bytes and seconds of a core that decoding takes, whether it is refused or not."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = peak(), time.process_time()
    try:
        image: object = decode_image(ref)
    except ImageError as error:
        image = error
    assert image is not None
    return peak() - before, time.process_time() - began


def cheap(ref: ImageFile) -> None:
    memory, seconds = costs(ref)
    assert memory <= MEMORY and (seconds <= SECONDS or not FULL), (ref.name, memory, seconds)


@pytest.mark.parametrize("name", RIGHT)
def test_right(name: str, tmp_path: Path) -> None:
    made, expected, tolerance = RIGHT[name]
    ref = written(tmp_path / "a.jpg", made)
    image = decode_image(ref)
    pixels = np.asarray(image.crop((0, 0, 1, 1)) if expected is WHITE else image).astype(int)
    assert image.mode == "RGB" and pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= tolerance
    del image, pixels
    cheap(ref)


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str, tmp_path: Path) -> None:
    made, reason = WRONG[name]
    ref = written(tmp_path / "a.png", made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            mode = decode_image(ref).mode
        except ImageError as error:
            mode = ""
            assert str(error).startswith(f"{ref.name}: ") and "\n" not in str(error)
            assert re.search(reason, str(error))
    assert mode == "" or (mode == "RGB" and name in EITHER)
    cheap(ref)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file(name: str, tmp_path: Path) -> None:
    make, reason = FILES[name]
    make(tmp_path / "a.png")
    with pytest.raises(ImageError, match=reason):
        decode_image(ImageFile(tmp_path / "a.png"))


SIDE = 7000 if FULL else 1000
PALETTE = chunk(b"PLTE", bytes(range(256)) * 3)


def filled(width: int, height: int, bits: int, colour: int, more: bytes = b"", channels: int = 1) -> bytes:
    """A PNG of rows that are all alike."""
    row = b"\0" + b"\x55" * -(-width * bits * channels // 8)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(row * height, 1))
    return b"\x89PNG\r\n\x1a\n" + head + more + body + chunk(b"IEND", b"")


def interlaced(side: int) -> bytes:
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join((b"\0" + bytes(-(-(side - x) // wide))) * -(-(side - y) // high) for x, y, wide, high in passes)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def one_colour(mode: str, side: int = SIDE) -> Image.Image:
    return Image.new(mode, (side, side), 3 if len(Image.new(mode, (1, 1)).getbands()) == 1 else None)


LARGE: dict[str, Callable[[], bytes]] = {
    "1 bit": lambda: filled(SIDE, SIDE, 1, 0),
    "1 bit, a hole": lambda: filled(SIDE, SIDE, 1, 0, chunk(b"tRNS", b"\0\1")),
    "2 bits": lambda: filled(SIDE, SIDE, 2, 0),
    "grey, a hole": lambda: filled(SIDE, SIDE, 8, 0, chunk(b"tRNS", b"\0\x55")),
    "palette": lambda: filled(SIDE, SIDE, 8, 3, PALETTE),
    "palette, a hole": lambda: filled(SIDE, SIDE, 8, 3, PALETTE + chunk(b"tRNS", b"\0\x80")),
    "16-bit grey": lambda: filled(SIDE, SIDE, 16, 0),
    "16-bit grey, a hole": lambda: filled(SIDE, SIDE, 16, 0, chunk(b"tRNS", b"\x55\x55")),
    "16-bit RGB": lambda: filled(SIDE, SIDE, 16, 2, channels=3),
    "16-bit RGBA": lambda: filled(SIDE, SIDE, 16, 6, channels=4),
    "RGB, a hole": lambda: filled(SIDE, SIDE, 8, 2, chunk(b"tRNS", b"\0\x55" * 3), channels=3),
    "grey and alpha": lambda: filled(SIDE, SIDE, 8, 4, channels=2),
    "interlaced": lambda: interlaced(SIDE),
    "one long side": lambda: filled(20_000, SIDE * SIDE // 20_000, 8, 6, channels=4),
    "60,000 on a side": lambda: filled(1, 60_000, 1, 0),
    "EXIF 6": lambda: saved(one_colour("RGB"), exif=exif(10)),
    "EXIF 6, 1 bit": lambda: saved(one_colour("1"), exif=exif(10)),
    "JPEG, EXIF 6": lambda: saved(one_colour("RGB"), "JPEG", exif=exif(10)),
    "JPEG, progressive": lambda: saved(one_colour("RGB"), "JPEG", progressive=True),
    "JPEG, progressive, whole colours": lambda: saved(one_colour("RGB"), "JPEG", progressive=True, subsampling=0),
    "JPEG, CMYK": lambda: saved(one_colour("CMYK"), "JPEG"),
    "JPEG, CMYK, progressive": lambda: saved(one_colour("CMYK"), "JPEG", progressive=True),
    "WebP": lambda: saved(one_colour("RGB"), "WEBP", method=0),
    "WebP, 14 megapixels": lambda: saved(one_colour("RGBA", 3750 if FULL else SIDE), "WEBP", method=0),
    "GIF, a hole": lambda: saved(one_colour("P"), "GIF", transparency=0),
    "BMP, 1 bit": lambda: saved(one_colour("1"), "BMP"),
    "TIFF, fax": lambda: saved(one_colour("1"), "TIFF", compression="group4"),
    "TIFF, CMYK": lambda: saved(one_colour("CMYK"), "TIFF", compression="tiff_deflate"),
    "TIFF, 16 bits": lambda: saved(one_colour("I;16"), "TIFF", compression="tiff_deflate"),
    "AVIF": lambda: saved(one_colour("RGB", 64), "AVIF"),
}


@pytest.mark.fault
def test_no_picture_takes_more_memory(tmp_path: Path, fault_row: Callable[[str, str, str], None]) -> None:
    """Of every kind, at the most pixels there may be (MLLM_FULL=1): decoded in a process of its own, or refused."""
    Image.init()  # what decoders take to be imported is no picture's
    most = MEMORY if FULL else 6e6 + 17.2 * SIDE * SIDE
    for name, made in LARGE.items():
        written(path := tmp_path / "a", made)
        answer = tmp_path / "cost"
        if not (child := os.fork()):
            memory = costs(ImageFile(path))[0]
            answer.write_text(str(memory - path.stat().st_size))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name
        assert int(answer.read_text()) <= most, (name, answer.read_text())
    fault_row(
        "T17", f"{len(LARGE)} of {len(LARGE)}", f"kinds of pictures of {SIDE} x {SIDE} and others: at most 250 MB"
    )


def test_limits_of_memory_are_checked_before_decoding() -> None:
    """RGB takes 4 bytes of a pixel, grey 5, what is changed 8, a progressive JPEG what it keeps."""
    alpha = PHOTO.convert("RGBA")
    for data, each in (
        (saved(PHOTO), 4),
        (saved(PHOTO.convert("L")), 5),
        (saved(Image.fromarray(SHADES)), 6),
        (saved(alpha), 8),
        (saved(PHOTO, "JPEG", progressive=True), 7),
        (saved(PHOTO, "JPEG", progressive=True, subsampling=0), 10),
        (saved(PHOTO, "JPEG", exif=exif(3)), 8),
        (saved(PHOTO, "JPEG", exif=exif(3, orientation=0)), 4),
        (saved(PHOTO, "WEBP"), 17),
    ):
        needed = each * 24 * 16
        assert decode_image(Given(data), ImageLimits(max_memory=needed)).mode == "RGB"
        with pytest.raises(
            ImageError, match=rf"of {each} bytes each \(.*\) = {needed} bytes, expected at most {needed - 1}$"
        ):
            decode_image(Given(data), ImageLimits(max_memory=needed - 1))


def test_the_mean_of_16_bits_is_kept() -> None:
    """Of noise of any range, and however many rows are converted at once."""
    for seed, most in enumerate((300, 4096, 65536)):
        pixels = np.random.default_rng(seed).integers(0, most, (131, 57)).astype(np.uint16)
        data = saved(Image.fromarray(pixels))
        image = decode_image(Given(data))
        assert abs(np.asarray(image).mean() - pixels.mean() / 257) <= 0.5
        exact = (pixels.astype(np.int64) * 255 + 32767) // 65535
        assert np.array_equal(np.asarray(image), np.repeat(exact[..., None], 3, -1))


class Given:
    name = "given"

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, max_bytes: int) -> bytes:
        return self.data


def test_a_picture_that_needs_no_change_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """RGB takes 4 bytes a pixel, once; what is changed is another picture."""
    copies: list[str] = []
    own = Image.Image.copy
    monkeypatch.setattr(Image.Image, "copy", lambda self: (copies.append(self.mode), own(self))[1])
    assert decode_image(Given(JPEG)).mode == "RGB" and not copies
    opened = Image.open(io.BytesIO(saved(PHOTO, exif=exif(3))))
    turned = decode_image(Given(saved(PHOTO, exif=exif(3))))
    assert turned.size == (16, 24) and opened.size == (24, 16)

"""How the C library keeps the memory of tensors on the CPU between steps."""

from __future__ import annotations

import ctypes
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""`mallopt`'s names for them (malloc.h of glibc)."""
LARGEST = 2**31 - 1


def keep_freed_blocks() -> bool:
    """Lets this process keep what tensors have freed, as torch's allocator does on a GPU; whether it could.

    glibc gives a block of 32 MiB or more back to the system when it is freed, and the next one is filled with zeros,
    page by page, when it is written: an eighth of a step of a small net (6 blocks of width 256, 6,400 tokens). What a
    step computes stays the same to the bit. Elsewhere than on Linux with glibc it does nothing.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    return all([library.mallopt(name, LARGEST) == 1 for name in (MMAP_THRESHOLD, TRIM_THRESHOLD)])

"""Prompts of a batch that begin alike: several questions about one image share all tokens up to the image's last one.

row 0  system  image 7  question ...         prefix 0: system  image 7
row 1  system  image 7  another question     prefix 1: system  image 9
row 2  system  image 9  a question ...       rows 0, 0, 1
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mllm.contracts import Batch, TokenKind

LEAST_SAVED = 0.2
"""The share of a batch's tokens that must be spared; a second pass costs something too."""


@dataclass(frozen=True)
class SharedPrefix:
    """The prefixes of a batch's rows, which are of one length."""

    length: int
    """Tokens of a prefix; every row has more."""
    firsts: list[int]
    """Of each prefix, the first row that has it."""
    owners: list[int]
    """Of each row, the number of its prefix."""


def shared_prefix(batch: Batch) -> SharedPrefix | None:
    """What rows share, if much; waits for the device of the batch.

    Args:
        batch: Prompts, padded on the left.
    """
    if not batch.num_images or batch.query_text is not None or batch.image_ids is None or batch.image_rows is None:
        return None
    rows, width = len(batch.ids), batch.tokens.shape[1]
    pads = (batch.segments == 0).sum(1).tolist()
    ends = _ends(batch)
    lengths = {end - pad for end, pad in zip(ends, pads, strict=True)}
    if len(lengths) > 1 or not 0 < min(lengths) < width - max(pads):
        return None
    length = lengths.pop()
    images: list[list[int]] = [[] for _ in range(rows)]
    owners = batch.image_rows[:: batch.num_images // len(batch.image_ids)].tolist()
    for row, number in zip(owners, batch.image_ids.tolist(), strict=True):
        images[row].append(number)
    tokens = batch.tokens.tolist()
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for row in range(rows):
        key = tuple(tokens[row][pads[row] : ends[row]]), tuple(images[row])
        found.setdefault(key, []).append(row)
    if (rows - len(found)) * length < LEAST_SAVED * rows * (width - min(pads)):
        return None
    number = {row: n for n, same in enumerate(found.values()) for row in same}
    return SharedPrefix(length, [same[0] for same in found.values()], [number[row] for row in range(rows)])


def _ends(batch: Batch) -> list[int]:
    """Of each row, the place behind its last token that is an image's; 0 where there is none."""
    ends, start, width = [0] * len(batch.ids), 0, batch.tokens.shape[1]
    for kind, length in batch.layout.runs:
        start += length
        if kind != TokenKind.TEXT:
            row, last = divmod(start - 1, width)
            ends[row] = last + 1
    return ends

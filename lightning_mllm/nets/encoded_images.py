"""Visual vectors of images that are asked about more than once.

    image_ids of a batch --not known--> encode_images, each image once --> vectors by image --> those of every row

Legend: N views of I images, n vectors of one kind, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_mllm.contracts import Batch, TokenKind
from lightning_mllm.language.slots import VisualVectors

ROOM = 1 << 30
"""Bytes of vectors that are kept: 400 images of LLaVA-1.5 in 16 bits, beside a model of 13 GB."""

Vectors = dict[TokenKind, Tensor]
"""Kind of slot -> f[n, D] of one image."""


class EncodedImages:
    """Encodes each image once, as long as its vectors are kept; the net's weights must stay as they are meanwhile.

    Images are told apart by `Batch.image_ids`. Where a net reads the question beside the image (`Batch.query_text`),
    every row is encoded by itself.

    Args:
        room: Bytes of vectors that are kept from batch to batch, those used last; 0 keeps none, so that every batch
            encodes at least one image, as ranks with sharded parameters must.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room, self.bytes = room, 0
        self._known: OrderedDict[int, Vectors] = OrderedDict()

    def __call__(self, encode: Callable[[Batch], VisualVectors], batch: Batch) -> VisualVectors:
        """What `encode` gives of the batch."""
        if batch.query_text is not None or batch.image_ids is None or not batch.num_images:
            return encode(batch)
        ids: list[int] = batch.image_ids.tolist()
        first = {number: i for i, number in reversed(list(enumerate(ids))) if number not in self._known}
        found = {number: self._known[number] for number in ids if number in self._known}
        if first:
            found |= self._encoded(encode, batch, len(ids), first)
        visual = {kind: torch.cat([found[number][kind] for number in ids]) for kind in found[ids[0]]}
        self._keep({number: found[number] for number in ids})
        return visual

    def _encoded(
        self, encode: Callable[[Batch], VisualVectors], batch: Batch, images: int, first: dict[int, int]
    ) -> dict[int, Vectors]:
        """Of the images that stand at places `first`."""
        places = torch.tensor(sorted(first.values()), device=batch.images.device)
        views = batch.images.unflatten(0, (images, -1)).index_select(0, places)
        encoded = encode(batch.noted(images=views.flatten(0, 1)))
        parts = {kind: each.unflatten(0, (len(places), -1)) for kind, each in encoded.items()}
        numbers = sorted(first, key=first.__getitem__)
        return {number: {kind: each[i] for kind, each in parts.items()} for i, number in enumerate(numbers)}

    def _keep(self, used: dict[int, Vectors]) -> None:
        if not self.room:
            return
        for number, vectors in used.items():
            if number in self._known:
                self._known.move_to_end(number)
                continue
            # Not a view: that would keep the vectors of its whole batch.
            self._known[number] = {kind: each.clone() for kind, each in vectors.items()}
            self.bytes += _size(vectors)
        while self.bytes > self.room:
            self.bytes -= _size(self._known.popitem(last=False)[1])


def _size(vectors: Vectors) -> int:
    return sum(each.numel() * each.element_size() for each in vectors.values())

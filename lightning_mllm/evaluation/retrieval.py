"""Image-text retrieval: which of all captions belongs to an image, and which of all images to a caption.

    images --embed--> image side --.
                                    similarity f[N, M] --> order --> top k, ordered anew by match + similarity --> ranks
    texts  --embed--> text side  --'

Legend: N images, M captions. Each rank keeps the image sides of its own images (with a tower's whole output, they are
large) and the text sides of all captions; similarities and matches of its own images are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor

from lightning_mllm.contracts import Batch, Evaluation
from lightning_mllm.evaluation.bootstrap import Interval, cluster_numbers, interval
from lightning_mllm.evaluation.metrics.recall import chance, highest, recalls, reranked
from lightning_mllm.evaluation.scores import Example, Key, encode_picture, gather, keys_of, spread
from lightning_mllm.evaluation.tasks import TASKS

Side = dict[str, Tensor]
"""What a net keeps of images, or of texts: named tensors with a row for each, alike in all other sizes.

A text side must be padded to one length, so that those of several calls join.
"""

NAMES = TASKS["retrieval"].names
"""`text_retrieval_r1`: an image finds any of its captions at the first place; `image_retrieval_r1`: a caption finds its
image there."""

IMAGES_AT_ONCE, TEXTS_AT_ONCE, PAIRS_AT_ONCE = 64, 2048, 128


@runtime_checkable
class Retriever(Protocol):
    """A net that tells how well images and texts agree."""

    @property
    def device(self) -> torch.device: ...

    def embed_images(self, batch: Batch) -> Side:
        """Of the one image of each row of `batch`."""
        ...

    def embed_texts(self, texts: list[str]) -> Side: ...

    def similarity(self, images: Side, texts: Side) -> Float[Tensor, "N M"]:
        """Of every image with every text, as in the contrastive loss; uses no sharded parameters."""
        ...


@runtime_checkable
class Matcher(Retriever, Protocol):
    """A retriever that looks at pairs more closely."""

    @property
    def rerank(self) -> int:
        """How many of the most similar ones are ordered anew (k_test of BLIP-2: 128 on COCO); 0 for none."""
        ...

    def match(self, images: Side, texts: Side, image_of: Int[Tensor, " K"]) -> Float[Tensor, " K"]:
        """The matching logit of K pairs: text k with image `image_of[k]`; each of `images` is there once."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Image:
    """One sample of one rank."""

    row: int
    """In the rank's image sides."""
    first_text: int
    """Row of its first caption in the rank's text sides."""
    id: str
    cluster: tuple[str, ...]
    """As in `Sample`."""
    prompt: str
    captions: tuple[str, ...]


class _Gallery:
    """All images of all ranks, each once, in the order of the set, and their captions in that of their images."""

    def __init__(self, everyone: Sequence[dict[Key, _Image]]) -> None:
        owner = {index: rank for rank in reversed(range(len(everyone))) for index in everyone[rank]}
        self.indices = sorted(owner)
        """Keys of the samples."""
        self.images = [everyone[owner[index]][index] for index in self.indices]
        self.owned = [
            [n for n, each in enumerate(self.indices) if owner[each] == rank] for rank in range(len(everyone))
        ]
        """Rank -> its images."""
        self.captions = [text for image in self.images for text in image.captions]
        self.image_of = [n for n, image in enumerate(self.images) for _ in image.captions]
        self._ends = list(accumulate(len(image.captions) for image in self.images))

    def texts_of(self, image: int) -> range:
        """Its captions among all."""
        return range(self._ends[image] - len(self.images[image].captions), self._ends[image])


class Retrieval:
    """Ranks all captions for each image and all images for each caption; the interface is that of `Scores`.

    Each rank calls `update` with its own batches of images, whose references are all their captions; then all of them
    call `compute`. An image that several ranks were given counts once. Intervals draw images with their captions.
    Equals are in random order: a score is the mean over all of them, so that a net that tells nothing apart scores
    chance.

    The order of the first k is by matching logit + similarity (LAVIS, blip2_qformer; the rest keeps its order behind).

    A blind twin is not embedded. Exchanged images would permute the right answers, and a good model would score below
    chance; what a model that cannot see scores is chance itself, which is what the twin gives.

    Args:
        evaluation: the set.
        net: what embeds and compares; a `Matcher` also orders the first ones anew.
        num_examples: how many images to keep for people.

    Raises:
        ValueError: the net cannot retrieve.
    """

    def __init__(self, evaluation: Evaluation, net: object, *, num_examples: int = 24) -> None:
        if not isinstance(net, Retriever):
            missing = [name for name in ("embed_images", "embed_texts", "similarity") if not hasattr(net, name)]
            raise ValueError(
                f"evaluation: task is 'retrieval' but {type(net).__name__} has no {', '.join(missing)}, expected a net"
                " that compares images and texts"
            )
        self.evaluation = evaluation
        self.net = net
        self.num_examples = num_examples
        self._images: dict[Key, _Image] = {}
        self._pictures: dict[Key, str] = {}
        self._image_sides: list[Side] = []
        self._text_sides: list[Side] = []
        self._num_images = self._num_texts = 0
        self._intervals: dict[str, Interval] | None = None
        self._examples: list[Example] = []
        self.num_answers = 0
        """Images, over all ranks; known after `compute`."""
        self.num_clusters = 0
        """What intervals draw; known after `compute`."""
        self.rows: list[dict[str, Any]] = []
        """The caption that every image found first, in the order of the set; known after `compute`, without a blind
        twin's."""

    def update(self, batch: Batch) -> None:
        """Adds one image a row and its references as captions."""
        assert self._intervals is None, "compute was called already"
        if batch.num_images != len(batch.ids):
            raise ValueError(
                f"samples {batch.ids[0]} to {batch.ids[-1]}: found {batch.num_images} images in {len(batch.ids)}"
                " samples, expected one each to retrieve captions"
            )
        for id, references in zip(batch.ids, batch.references, strict=True):
            if not references:
                raise ValueError(f"sample {id}: found no reference, expected its captions")
        texts = [text for references in batch.references for text in references]
        if not self.evaluation.blind:
            self._image_sides.append(_kept(self.net.embed_images(batch)))
            self._text_sides.append(_kept(self.net.embed_texts(texts)))
        start = self._num_images
        indices = keys_of(batch)
        clusters = batch.clusters or [()] * len(batch.ids)
        rows = zip(indices, batch.ids, clusters, batch.prompts, batch.references, strict=True)
        for row, (index, id, cluster, prompt, captions) in enumerate(rows):
            new = _Image(
                row=start + row,
                first_text=self._num_texts,
                id=id,
                cluster=cluster,
                prompt=prompt,
                captions=tuple(captions),
            )
            known = self._images.setdefault(index, new)
            if (known.id, known.captions) != (new.id, new.captions):
                raise ValueError(
                    f"sample {id}: found in the place of {known.id} in the evaluation set"
                    f" 'retrieval{self.evaluation.suffix}', with other captions, expected one sample at each position,"
                    " or unique ids"
                )
            self._num_texts += len(captions)
        self._num_images += len(batch.ids)
        chosen = spread({n: self._images[n].id for n in [*self._pictures, *indices]}, self.num_examples)
        row_of = {index: row for row, index in enumerate(indices)}
        self._pictures = {
            n: self._pictures[n] if n in self._pictures else encode_picture(batch.images[row_of[n]]) for n in chosen
        }

    @property
    def examples(self) -> list[Example]:
        """Images spread over the set, each with the caption it found first; after `compute`."""
        assert self._intervals is not None, "call compute first, on every rank"
        return self._examples

    @torch.no_grad()
    def compute(self) -> dict[str, Interval]:
        """Score name with the set's suffix -> value and interval over queries; the same on each rank."""
        if self._intervals is None:
            gallery = _Gallery(gather(self._images))
            if not gallery.images:
                raise ValueError("evaluation 'retrieval': no image to score, expected at least one")
            clusters = cluster_numbers([image.cluster for image in gallery.images])
            self.num_answers, self.num_clusters = len(gallery.images), int(clusters.max()) + 1
            of_texts = clusters[gallery.image_of]
            hits = _blind(gallery) if self.evaluation.blind else self._rank_all(gallery, clusters)
            self._intervals = {
                name + self.evaluation.suffix: interval(column, clusters if name.startswith("text") else of_texts)
                for name, column in zip(NAMES, hits, strict=True)
            }
        return self._intervals

    def _rank_all(self, gallery: _Gallery, clusters: Int[np.ndarray, " N"]) -> list[list[float]]:
        """For each of NAMES, how likely each query is answered so early."""
        own = gallery.owned[_rank()]
        images, texts = _joined(self._image_sides), _joined(self._text_sides)
        self._image_sides, self._text_sides = [], []
        rows = [gallery.images[n].row for n in own]
        captions = [gallery.images[n].first_text + i for n in own for i in range(len(gallery.images[n].captions))]
        everywhere = gather({name: tensor[captions] for name, tensor in texts.items()})
        place = torch.tensor([m for part in gallery.owned for n in part for m in gallery.texts_of(n)])
        texts = _at(_joined(everywhere), place.argsort())

        similarity = np.empty((len(gallery.images), len(gallery.captions)), dtype=np.float32)
        for part, block in zip(gallery.owned, gather(self._similarity(images, texts, rows)), strict=True):
            similarity[part] = block
        to_texts, to_images = self._first(similarity), self._first(similarity.T)
        wanted = np.zeros(similarity.shape, dtype=bool)
        np.put_along_axis(wanted, to_texts, True, axis=1)
        np.put_along_axis(wanted.T, to_images, True, axis=1)
        match = self._match(images, texts, wanted, own, rows)

        text_hits, image_hits, said = [], [], []
        for n, first in enumerate(to_texts):
            scores = reranked(similarity[n], first, match[n, first])
            text_hits.append(recalls(scores, gallery.texts_of(n)))
            said.append(gallery.captions[int(scores.argmax())])
        for m, first in enumerate(to_images):
            scores = reranked(similarity[:, m], first, match[first, m])
            image_hits.append(recalls(scores, [gallery.image_of[m]]))
        self.rows = [
            {
                "id": image.id,
                "cluster": int(cluster),
                "prompt": image.prompt,
                "answer": answer,
                "references": list(image.captions),
                "score": hits[0],
                "text_recalls": hits,
                "image_recalls": [image_hits[m] for m in gallery.texts_of(n)],
                **({"pictures": list(image.cluster)} if image.cluster else {}),
            }
            for n, (image, cluster, answer, hits) in enumerate(
                zip(gallery.images, clusters, said, text_hits, strict=True)
            )
        ]
        self._show(gallery, said, [hits[0] for hits in text_hits])
        return [list(column) for hits in (text_hits, image_hits) for column in zip(*hits, strict=True)]

    def _similarity(self, images: Side, texts: Side, rows: Sequence[int]) -> np.ndarray:
        """f32[rows, M]"""
        total = len(next(iter(texts.values())))
        blocks = [np.empty((0, total), dtype=np.float32)]
        for start in range(0, len(rows), IMAGES_AT_ONCE):
            side = self._there(images, rows[start : start + IMAGES_AT_ONCE])
            parts = [self.net.similarity(side, self._moved(part)) for part in _cut(texts, TEXTS_AT_ONCE)]
            blocks.append(torch.cat(parts, dim=1).float().cpu().numpy())
        return np.concatenate(blocks)

    def _first(self, similarity: np.ndarray) -> np.ndarray:
        """i64[rows, k]: the columns to order anew, of equals the first ones."""
        k = self.net.rerank if isinstance(self.net, Matcher) else 0
        return np.stack([highest(row, k) for row in similarity])

    def _match(
        self, images: Side, texts: Side, wanted: np.ndarray, own: Sequence[int], rows: Sequence[int]
    ) -> np.ndarray:
        """f32[N, M]: the matching logits of the wanted pairs, each computed by the rank that has its image."""
        image, text = np.nonzero(wanted[own])
        logits = [np.empty(0, dtype=np.float32)]
        for step in range(max(gather(-(-len(image) // PAIRS_AT_ONCE)))):
            assert isinstance(self.net, Matcher), "others have no pairs to order anew"
            now = slice(step * PAIRS_AT_ONCE, (step + 1) * PAIRS_AT_ONCE)
            i, m = image[now], text[now]
            if not len(i):
                # Sharded parameters need every rank in each call: one that is done goes on with any pair.
                self.net.match(self._there(images, [0]), self._there(texts, [0]), self._device(np.zeros(1, int)))
                continue
            several, which = np.unique(i, return_inverse=True)
            side = self._there(images, [rows[each] for each in several])
            logits.append(self.net.match(side, self._there(texts, m), self._device(which)).float().cpu().numpy())
        match = np.full(wanted.shape, np.nan, dtype=np.float32)
        for i, m, values in gather((np.array(own, dtype=int)[image], text, np.concatenate(logits))):
            match[i, m] = values
        return match

    def _there(self, side: Side, rows: Sequence[int] | np.ndarray) -> Side:
        """Some rows of a side on the net's device."""
        return self._moved(_at(side, torch.as_tensor(rows)))

    def _device(self, numbers: np.ndarray) -> Int[Tensor, " K"]:
        return torch.from_numpy(numbers).to(self.net.device)

    def _moved(self, side: Side) -> Side:
        return {name: tensor.to(self.net.device) for name, tensor in side.items()}

    def _show(self, gallery: _Gallery, said: Sequence[str], scores: Sequence[float]) -> None:
        pictures = {index: picture for some in gather(self._pictures) for index, picture in some.items()}
        place = {index: n for n, index in enumerate(gallery.indices)}
        shown = spread({index: gallery.images[n].id for index, n in place.items()}, self.num_examples)
        self._examples = [
            Example(
                id=gallery.images[n].id,
                prompt=gallery.images[n].prompt,
                answer=said[n],
                references=gallery.images[n].captions,
                picture=pictures[index],
                score=scores[n],
            )
            for index, n in ((index, place[index]) for index in shown)
        ]


def _kept(side: Side) -> Side:
    return {name: tensor.detach().cpu() for name, tensor in side.items()}


def _joined(sides: Sequence[Side]) -> Side:
    return {name: torch.cat([side[name] for side in sides]) for name in sides[0]}


def _at(side: Side, rows: Int[Tensor, " K"]) -> Side:
    return {name: tensor[rows.to(tensor.device)] for name, tensor in side.items()}


def _cut(side: Side, size: int) -> Iterator[Side]:
    for parts in zip(*(tensor.split(size) for tensor in side.values()), strict=True):
        yield dict(zip(side, parts, strict=True))


def _rank() -> int:
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if running else 0


def _blind(gallery: _Gallery) -> list[list[float]]:
    """Chance for each query."""
    texts, images = len(gallery.captions), len(gallery.images)
    by_image = [chance(texts, len(image.captions)) for image in gallery.images]
    by_text = [chance(images, 1)] * texts
    return [list(column) for hits in (by_image, by_text) for column in zip(*hits, strict=True)]

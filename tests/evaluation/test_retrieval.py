"""Retrieval on random features, against a brute force that sorts every gallery."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor

from lightning_mllm.contracts import Batch, Evaluation
from lightning_mllm.evaluation.bootstrap import interval
from lightning_mllm.evaluation.retrieval import NAMES, Matcher, Retrieval, Retriever, Side
from tests.evaluation.test_scores import a_batch, shade

WIDTH = 6
SET = Evaluation(task="retrieval", part="novel")


class Net:
    """Knows image i by its shade and text by its words; features are random but fixed, `levels` makes ties."""

    def __init__(self, rerank: int = 0, levels: int = 0) -> None:
        self.rerank, self.levels, self.device = rerank, levels, torch.device("cpu")
        self.matched: list[tuple[int, str]] = []

    def embed_images(self, batch: Batch) -> Side:
        number = batch.images[:, 0, 0, 0].long() // 4
        return {"number": number, "features": torch.stack([feature(f"image {int(n)}") for n in number])}

    def embed_texts(self, texts: list[str]) -> Side:
        names = [torch.tensor(list(text.ljust(12).encode())) for text in texts]
        return {"name": torch.stack(names), "features": torch.stack([feature(text.split(".")[0]) for text in texts])}

    def similarity(self, images: Side, texts: Side) -> Tensor:
        found = images["features"] @ texts["features"].T
        return torch.round(found * self.levels / 4) if self.levels else found

    def match(self, images: Side, texts: Side, image_of: Tensor) -> Tensor:
        assert len(image_of.unique()) == len(images["number"]), "each image once"
        rows = zip(images["number"][image_of].tolist(), texts["name"].tolist(), strict=True)
        pairs = [(number, bytes(name).decode().strip()) for number, name in rows]
        self.matched += pairs
        return torch.tensor([logit(*pair) for pair in pairs])


def feature(name: str) -> Tensor:
    """Of a caption near that of its image."""
    seed = int(name.split()[1])
    own = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    if name.startswith("image"):
        return own
    return own + 1.3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(100 + sum(name.encode())))


def logit(number: int, text: str) -> float:
    return float(np.sin(number * 12.9 + sum(text.encode()) * 3.7)) * 3


def captions_of(i: int) -> tuple[str, ...]:
    return tuple(f"text {i} {'abcde'[k]}" for k in range(1 + i % 3))


def images(ids: list[int]) -> Batch:
    batch = a_batch(ids)
    batch.images = torch.stack([torch.full((3, 8, 8), 4 * i, dtype=torch.uint8) for i in ids])
    batch.references = [captions_of(i) for i in ids]
    return batch


def retrieved(net: Net, chunks: list[list[int]], evaluation: Evaluation = SET) -> Retrieval:
    found = Retrieval(evaluation, net, num_examples=4)
    for ids in chunks:
        found.update(images(ids))
    return found


def brute_force(net: Net, ids: list[int]) -> dict[str, list[float]]:
    """Every gallery in 400 random orders, sorted; name -> hits of each query, images and texts in the set's order."""
    texts = [text for i in ids for text in captions_of(i)]
    owner = [i for i in ids for _ in captions_of(i)]
    similarity = net.similarity(net.embed_images(images(ids)), net.embed_texts(texts)).numpy().astype(float)
    match = np.array([[logit(i, text) for text in texts] for i in ids])
    random = np.random.default_rng(0)

    def hits(row: np.ndarray, logits: np.ndarray, right: np.ndarray) -> list[float]:
        first = sorted(range(len(row)), key=lambda c: (-row[c], c))[: net.rerank]
        ranks = []
        for _ in range(400 if net.levels else 1):
            shuffled = random.permutation(len(row)).tolist()
            front = sorted([c for c in shuffled if c in first], key=lambda c: -(row[c] + logits[c]))
            rest = sorted([c for c in shuffled if c not in first], key=lambda c: -row[c])
            ranks.append(next(place for place, c in enumerate([*front, *rest]) if right[c]))
        return [float(np.mean(np.array(ranks) < k)) for k in (1, 5, 10)]

    by_image = [hits(similarity[n], match[n], np.array([o == i for o in owner])) for n, i in enumerate(ids)]
    by_text = [hits(similarity[:, m], match[:, m], np.array([i == o for i in ids])) for m, o in enumerate(owner)]
    columns = [list(column) for rows in (by_image, by_text) for column in zip(*rows, strict=True)]
    return dict(zip(NAMES, columns, strict=True))


@pytest.mark.parametrize("rerank", [0, 3, 8, 1000])
def test_every_order_is_that_of_brute_force(rerank: int) -> None:
    ids = list(range(40))
    net = Net(rerank)
    found = retrieved(net, [ids[:16], ids[16:32], ids[32:]])
    expected = brute_force(net, ids)
    owner = np.array([i for i in ids for _ in captions_of(i)])
    assert found.compute() == {
        f"{name}_novel": interval(hits, owner if name.startswith("image") else None) for name, hits in expected.items()
    }
    assert found.num_clusters == 40, "captions are drawn with their image"
    assert 0.1 < found.compute()["text_retrieval_r1_novel"].value < 0.95
    assert found.num_answers == 40


def test_equals_score_the_mean_of_random_orders() -> None:
    ids = list(range(30))
    net = Net(levels=2)
    found, expected = retrieved(net, [ids]).compute(), brute_force(net, ids)
    for name, hits in expected.items():
        assert len(set(hits)) > 3
        assert found[f"{name}_novel"].value == pytest.approx(np.mean(hits), abs=0.01)


def test_only_the_first_ones_are_matched_and_change_places() -> None:
    ids, k = list(range(40)), 6
    near, again = Net(), Net(k)
    before, after = retrieved(near, [ids]).compute(), retrieved(again, [ids]).compute()
    assert before["image_retrieval_r1_novel"] != after["image_retrieval_r1_novel"]
    assert before["image_retrieval_r10_novel"] == after["image_retrieval_r10_novel"]
    texts = sum(len(captions_of(i)) for i in ids)
    assert len(set(again.matched)) == len(again.matched) <= k * (len(ids) + texts)
    assert all(any(pair[0] == i for pair in again.matched) for i in ids)


def test_a_net_that_tells_nothing_apart_scores_chance_and_so_does_the_blind_twin() -> None:
    ids = list(range(30))
    constant = Net()
    constant.similarity = lambda images, texts: torch.zeros(len(images["number"]), len(texts["name"]))
    found = retrieved(constant, [ids]).compute()
    blind = retrieved(Net(), [ids], Evaluation(task="retrieval", part="novel", blind=True))
    for name, chance in blind.compute().items():
        assert found[name.removesuffix("_blind")].value == pytest.approx(chance.value)
    assert blind.compute()["image_retrieval_r5_novel_blind"].value == pytest.approx(5 / 30)
    assert blind.compute()["text_retrieval_r1_novel_blind"].value == pytest.approx(2 / 60)
    assert blind.examples == []


def test_an_image_given_twice_counts_once() -> None:
    once, twice = (retrieved(Net(4), chunks) for chunks in ([[0, 1, 2, 3, 4]], [[0, 1, 2], [3, 0, 4], [4]]))
    assert once.compute() == twice.compute()
    assert twice.num_answers == 5


def test_examples_show_the_picture_and_the_caption_that_it_found() -> None:
    found = retrieved(Net(3), [list(range(20))])
    found.compute()
    assert len(found.examples) == 4
    for example in found.examples:
        assert shade(example.picture) == 4 * int(example.id[1:])
        assert example.references == captions_of(int(example.id[1:]))
        assert example.score == float(example.answer in example.references)


def rank_main(rank: int, folder: str, chunks: list[list[int]]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = Net(4)
    found = retrieved(net, chunks)
    torch.save((found.compute(), found.examples, len(net.matched)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("second", [[[1, 3], [5, 7], [9, 11], [13, 0]], [[2, 0]]], ids=["a half", "repeats only"])
def test_two_ranks_give_the_scores_of_one(tmp_path: Path, second: list[list[int]]) -> None:
    first = [[2, 0], [4, 6], [8, 10], [12, 14]]
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=rank_main, args=(rank, str(tmp_path), chunks))
        for rank, chunks in enumerate((first, second))
    ]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(60)
        assert each.exitcode == 0
    one = retrieved(Net(4), [sorted({i for chunks in (first, second) for ids in chunks for i in ids})])
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for values, examples, _ in saved:
        assert values == one.compute()
        assert examples == one.examples
    matched = [count for _, _, count in saved]
    assert min(matched) > 0, "each rank takes part in every call"


def test_what_cannot_retrieve_or_be_retrieved_is_refused() -> None:
    assert isinstance(Net(), Retriever) and isinstance(Net(), Matcher)
    with pytest.raises(ValueError, match="task is 'retrieval' but object has no embed_images, embed_texts, similarity"):
        Retrieval(SET, object())
    found = Retrieval(SET, Net())
    with pytest.raises(ValueError, match="samples q1 to q2: found 3 images in 2 samples"):
        found.update(a_batch([1, 2], images_per_row=[1, 2]))
    batch = images([1])
    batch.references = [()]
    with pytest.raises(ValueError, match="sample q1: found no reference"):
        found.update(batch)
    found.update(images([1]))
    other = images([1])
    other.references = [("text 9 z",)]
    with pytest.raises(ValueError, match="sample q1: found in the place of q1 in the evaluation set"):
        found.update(other)
    with pytest.raises(ValueError, match="no image to score"):
        Retrieval(SET, Net()).compute()

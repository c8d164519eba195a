from __future__ import annotations

import base64
import io
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from PIL import Image

from data_modules.listing import published
from lightning_mllm.contracts import Batch, Evaluation, TokenKind
from lightning_mllm.evaluation.bootstrap import interval
from lightning_mllm.evaluation.metrics import RankMetric
from lightning_mllm.evaluation.scores import LOSSLESS_SIDE, Scores, encode_picture, picture
from lightning_mllm.evaluation.tasks import TASKS

VQA = Evaluation(task="vqa", part="novel", blind=True)


def a_batch(ids: list[int], images_per_row: list[int] | None = None, side: int = 8) -> Batch:
    """Row i asks for its own number; image k of the batch is filled with the value 10 * (k + 1)."""
    per_row = images_per_row or [1] * len(ids)
    total, rows = sum(per_row), len(ids)
    kinds = torch.zeros(rows, 16, dtype=torch.uint8)
    for row, count in enumerate(per_row):
        kinds[row, 2 : 2 + 4 * count] = TokenKind.IMAGE
    images = torch.stack(
        [torch.full((3, side, side), 10 * (k + 1) % 256, dtype=torch.uint8) for k in range(max(total, 1))]
    )
    tokens = torch.zeros(rows, 16, dtype=torch.long)
    return Batch(
        ids=[f"q{i}" for i in ids],
        tokens=tokens,
        labels=tokens,
        kinds=kinds,
        segments=tokens + 1,
        positions=tokens,
        images=images,
        num_images=total,
        image_rows=torch.tensor([row for row, count in enumerate(per_row) for _ in range(count)] or [0]),
        references=[(str(i),) for i in ids],
        tasks=["vqa"] * rows,
        prompts=[f"<image>\nWhich number is {i}?" for i in ids],
        indices=list(ids),
        clusters=[()] * rows,
    )


def answers_to(ids: list[int]) -> list[str]:
    return [str(i) if i % 3 else "wrong" for i in ids]


def filled(chunks: list[list[int]], **settings) -> Scores:
    scores = Scores(VQA, **settings)
    for ids in chunks:
        scores.update(a_batch(ids), answers_to(ids))
    return scores


def shade(address: str) -> int:
    image = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    return image.getpixel((0, 0))[0]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript, reportReturnType]


def test_names_carry_the_suffix_and_values_the_interval() -> None:
    found = filled([list(range(20)), list(range(20, 30))]).compute()
    expected = interval([float(i % 3 != 0) for i in range(30)])
    assert found == {"vqa_accuracy_novel_blind": expected}
    assert expected.value == pytest.approx(20 / 30)


def test_a_sample_answered_twice_counts_once() -> None:
    once = filled([[0, 1, 2], [3, 4]])
    twice = filled([[0, 1, 2], [3, 4, 0], [0, 0]])
    assert once.compute() == twice.compute()
    assert twice.num_answers == 5


def test_samples_that_read_alike_are_two() -> None:
    """The same id, text, answers: what tells samples apart is their position in the set."""
    scores = Scores(VQA)
    batch = a_batch([1, 2, 3])
    batch.ids, batch.prompts, batch.references = ["q1"] * 3, ["How many?"] * 3, [("2",)] * 3
    scores.update(batch, ["2", "2", "3"])
    scores.update(batch, ["2", "2", "3"])
    assert scores.compute()["vqa_accuracy_novel_blind"].value == pytest.approx(2 / 3)
    assert scores.num_answers == 3 and [row["answer"] for row in scores.rows] == ["2", "2", "3"]


def test_where_a_data_module_gives_no_positions_ids_tell_samples_apart() -> None:
    scores, placed = Scores(VQA), filled([[0, 1, 2], [3, 4, 5]])
    for ids in ([3, 4, 5], [0, 1, 2], [2, 4]):
        batch = a_batch(ids)
        batch.indices, batch.clusters = [None] * len(ids), []
        scores.update(batch, answers_to(ids))
    assert scores.compute() == placed.compute() and scores.num_answers == 6


def pictured(order: list[int]) -> Scores:
    """60 questions about 12 pictures; a picture's questions are all answered, or none of them."""
    scores = Scores(Evaluation(task="vqa"))
    for i in order:
        batch = a_batch([i])
        batch.clusters = [(f"{i // 5}.png",)]
        scores.update(batch, [str(i) if i // 5 % 3 else "wrong"])
    return scores


def test_intervals_draw_pictures_with_all_their_questions() -> None:
    scores = pictured(list(range(60)))
    found, right = scores.compute()["vqa_accuracy"], [float(i // 5 % 3 != 0) for i in range(60)]
    assert (scores.num_answers, scores.num_clusters) == (60, 12)
    assert found == interval(right, np.repeat(np.arange(12), 5))
    alone = interval(right)
    assert found.high - found.low > 1.8 * (alone.high - alone.low), "five questions of one mind are one"
    assert pictured(list(range(59, -1, -1))).compute() == scores.compute()
    assert [row["cluster"] for row in scores.rows] == [i // 5 for i in range(60)]
    assert {row["score"] for row in scores.rows} == {0.0, 1.0}


def captioned(chunks: list[list[int]]) -> Scores:
    """Captions that are right to different degrees, so that intervals are fine-grained."""
    scores = Scores(Evaluation(task="caption"), num_examples=6)
    for ids in chunks:
        batch = a_batch(ids)
        batch.references = [(f"scene {i} with {i % 7} dogs and {i % 5} cats",) for i in ids]
        scores.update(batch, [f"scene {i} with {i % 4} dogs and {i % 3} cats" for i in ids])
    return scores


def test_nothing_depends_on_how_the_set_was_divided() -> None:
    ids = list(range(40))
    whole, pieces = captioned([ids]), captioned([ids[i::7] for i in range(7)][::-1])
    assert whole.compute() == pieces.compute()
    assert [e.id for e in whole.examples] == [e.id for e in pieces.examples]
    assert len(whole.examples) == 6
    assert [e.id for e in whole.examples] != sorted(f"q{i}" for i in ids)[:6]


def rank_main(rank: int, folder: str, ids: list[int]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scores = filled([ids], num_examples=5)
    found = scores.compute()
    torch.save((found, scores.examples, scores.num_answers), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_scores_of_one(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    shards = [[0, 2, 4, 6, 8], [1, 3, 5, 7, 0]]  # the second repeats a sample to be as long
    ranks = [fork.Process(target=rank_main, args=(rank, str(tmp_path), ids)) for rank, ids in enumerate(shards)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(60)
        assert each.exitcode == 0
    one = filled([list(range(9))], num_examples=5)
    for rank in range(2):
        found, examples, count = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found == one.compute()
        assert [(e.id, e.answer, e.score) for e in examples] == [(e.id, e.answer, e.score) for e in one.examples]
        assert all(e.picture.startswith("data:image/png") for e in examples)
        assert count == 9


def test_examples_show_what_was_asked_said_and_seen() -> None:
    scores = filled([[3, 4]])
    scores.compute()
    by_id = {example.id: example for example in scores.examples}
    assert (by_id["q3"].answer, by_id["q3"].references, by_id["q3"].score) == ("wrong", ("3",), 0.0)
    assert (by_id["q4"].answer, by_id["q4"].prompt, by_id["q4"].score) == ("4", "<image>\nWhich number is 4?", 1.0)
    assert shade(by_id["q4"].picture) == 20


def test_the_picture_is_the_first_image_of_its_own_row() -> None:
    batch = a_batch([0, 1, 2, 3], images_per_row=[1, 0, 2, 1])
    assert [shade(p) if (p := picture(batch, row)) else None for row in range(4)] == [10, None, 20, 40]
    assert picture(a_batch([0], images_per_row=[0]), 0) == ""


def test_drawn_scenes_stay_exact_and_photographs_become_small() -> None:
    noise = torch.randint(0, 256, (3, LOSSLESS_SIDE, LOSSLESS_SIDE), dtype=torch.uint8)
    image = Image.open(io.BytesIO(base64.b64decode(encode_picture(noise).split(",")[1])))
    assert torch.equal(torch.tensor(list(image.convert("RGB").tobytes())), noise.permute(1, 2, 0).flatten().long())
    large = encode_picture(torch.full((3, 336, 336), 99, dtype=torch.uint8))
    assert large.startswith("data:image/jpeg")
    assert len(large) < 5000


@pytest.mark.parametrize("task", [task for task in TASKS if Evaluation(task=task).answered])
def test_every_task_scores_yes_and_no(task: str) -> None:
    scores, batch = Scores(Evaluation(task=task)), a_batch([0, 1])
    boxes, letters = ("[[1,1,2,2]]", "[[5,5,9,9]]"), ("A", "B")
    kinds = {"grounding": boxes, "detection": boxes, "mmbench": letters, "seed_bench": letters}
    yes, no = kinds.get(task, ("yes", "no"))
    batch.ids, batch.question_types = ["0", "1"], ["count", "count"]
    people = 5 if task == "ivqa" else 1
    batch.references = [(yes,) * people, (no,) * people]
    if issubclass(TASKS[task].metrics[0], RankMetric):
        batch.candidates = [("yes", "no"), ("yes", "no")]
        scores.rank(batch, [[-1.0, -2.0], [-3.0, -2.0]])
    else:
        scores.update(batch, [yes, no])
    found = scores.compute()
    assert tuple(found) == TASKS[task].names
    assert next(iter(found.values())).value > 0.4


def test_a_score_is_told_by_kind_with_intervals_of_its_own() -> None:
    scores, ids = Scores(Evaluation(task="seed_bench")), list(range(12))
    batch = a_batch(ids)
    batch.references = [("A",)] * 12
    batch.question_types = ["Counting" if i % 3 else "Relation" for i in ids]
    batch.clusters = [(f"{i // 2}.png",) for i in ids]
    scores.update(batch, ["A" if i % 3 != 1 else "B" for i in ids])
    scores.compute()
    (kinds,) = scores.kinds.values()
    assert list(scores.kinds) == ["seed_accuracy"]
    assert {kind: (each["value"], each["samples"]) for kind, each in kinds.items()} == {
        "Counting": (0.5, 8),
        "Relation": (1.0, 4),
    }
    assert kinds["Counting"]["low"] < 0.5 < kinds["Counting"]["high"]
    assert filled([[1, 2]]).kinds == {}


def test_every_published_data_set_has_its_scores() -> None:
    tasks = {each.title: set(each.tasks) for _, each in published()}
    assert {"NoCaps", "Hateful Memes", "Visual Dialog", "iVQA", "ScienceQA"} <= tasks.keys()
    # Trained on alone; in LLaVA's paper, a language model judges its conversations.
    assert all(of <= TASKS.keys() for of in tasks.values()), "what `mllm data list` names can be scored"
    assert {title for title, of in tasks.items() if not of} == {
        *(f"LLaVA-Instruct {kind}" for kind in ("conversation", "detail", "reasoning")),
        *("Flickr30K Entities", "COCO keypoints"),
    }


def ranked(ids: list[int], task: str = "choice") -> Scores:
    """Row i is answered by one of four words; the right one is the likeliest unless i is divisible by 3."""
    scores, words = Scores(Evaluation(task=task), num_examples=5), ("red", "green", "blue", "grey")
    for i in ids:
        batch = a_batch([i])
        batch.references, batch.candidates = [(words[i % 4],)], [words]
        scores.rank(batch, [[-1.0 - ((j - i - (i % 3 == 0)) % 4) for j in range(4)]])
    return scores


def test_a_closed_set_is_answered_by_its_likeliest_candidate() -> None:
    scores = ranked(list(range(12)))
    assert scores.compute()["choice_accuracy"].value == pytest.approx(8 / 12)
    by_id = {example.id: example for example in scores.examples}
    assert len(by_id) == 5
    for id, example in by_id.items():
        wrong = int(id[1:]) % 3 == 0
        assert (example.answer == example.references[0], example.score) == (not wrong, float(not wrong))
    # The same set under a task of written answers: the chosen candidate is what was said.
    assert ranked(list(range(12)), "exact").compute()["exact_match"].value == pytest.approx(8 / 12)
    assert ranked(list(range(12)), "mrr").compute()["mrr"].value == pytest.approx((8 + 4 / 4) / 12)


def test_closed_sets_do_not_depend_on_the_division_either() -> None:
    ids = list(range(12))
    assert ranked(ids).compute() == ranked([*ids[7:], *ids[:9], 0]).compute()


def test_wrong_sets_are_refused_with_names() -> None:
    with pytest.raises(ValueError, match=r"task is 'captions', expected one of .*did you mean 'caption'"):
        Scores(Evaluation(task="captions"))
    batch = a_batch([7])
    batch.references = [()]
    with pytest.raises(ValueError, match="sample q7: found no reference"):
        Scores(VQA).update(batch, ["x"])
    with pytest.raises(ValueError, match="no answer to score"):
        Scores(VQA).compute()
    scores = filled([[1]])
    other = a_batch([1])
    other.prompts = ["another question"]
    with pytest.raises(ValueError, match="sample q1: found in the place of q1 in the evaluation set 'vqa_novel"):
        scores.update(other, ["1"])
    batch = a_batch([1, 2])
    batch.candidates = [("yes", "no"), ("yes",)]
    with pytest.raises(ValueError, match="sample q2: found 2 likelihoods of 1 candidates"):
        Scores(Evaluation(task="choice")).rank(batch, [[-1.0, -2.0], [-1.0, -2.0]])

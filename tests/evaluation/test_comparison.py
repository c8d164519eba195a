"""Runs of known answers, compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from lightning_mllm.evaluation.compare_page import render, write_page
from lightning_mllm.evaluation.compared_runs import differing, read_sides
from lightning_mllm.evaluation.comparison import Comparison, compare
from tests.evaluation.test_report import Page
from tests.evaluation.tested_runs import write_tested


@cache
def compared(*paths: Path, runs: Path = Path("runs")) -> Comparison:
    """Once for the same folders."""
    return compare(read_sides(list(paths), runs), draws=300)


def good(i: int) -> bool:
    return i * 7 % 10 > 1


def alike(i: int) -> bool:
    """As often right as `good`, on the same pictures but for a few questions."""
    return good(i) if i % 7 else good(i + 2)


def poor(i: int) -> bool:
    return i * 7 % 10 > 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with two seeds, and its blind-trained twin."""
    root = tmp_path_factory.mktemp("compared") / "runs"
    (root.parent / "pictures").mkdir()
    for k in range(60):
        Image.new("RGB", (8, 8), (4 * k, 0, 0)).save(root.parent / "pictures" / f"{k}.png")
    seeds = {"seed-0": good, "seed-1": alike}
    for name, right in seeds.items():
        settings = {"seed_everything": int(name[-1])}
        write_tested(root / "seeing" / name, right, pictures=root.parent / "pictures", settings=settings)
        write_tested(root / "other" / name, lambda i, right=right: right(i + 1), settings=settings)
    write_tested(root / "alike", alike, settings={"stage": {"global_batch": 8, "lr": 0.2}})
    write_tested(root / "blind", poor, settings={"data": {"init_args": {"train": {"a": {"class_path": "Blind"}}}}})
    return root


def verdicts(found: Comparison) -> dict[str, str]:
    return {each.score: each.verdict for each in found.headlines}


def test_two_seeds_of_one_recipe_tie_with_stated_power(runs: Path) -> None:
    found = compared(runs / "seeing/seed-0", runs / "seeing/seed-1", runs=runs)
    assert [side.name for side in found.sides] == ["seeing/seed-0", "seeing/seed-1"]
    accuracy = found.headlines[0]
    assert (accuracy.score, accuracy.verdict, accuracy.samples, accuracy.clusters) == ("vqa_accuracy", "tie", 180, 60)
    assert accuracy.difference.low < 0 < accuracy.difference.high
    assert 0 < accuracy.detectable < 0.5
    told = f"a difference of {accuracy.detectable:.3f} would have been found in 80 % of such tests"
    assert 0 < accuracy.detectable_of_nets < min(accuracy.detectable, 0.2)
    told += f", of {accuracy.detectable_of_nets:.3f} between these nets"
    assert accuracy.sentence.startswith("tie: the difference ") and accuracy.sentence.endswith(told)
    assert found.notes == (
        "seeing/seed-0 and seeing/seed-1 are seeds of one recipe: what they differ in counts as what seeds make.",
    )
    assert [(each.key, each.values) for each in found.settings] == [("seed_everything", (0, 1))]


def test_a_run_wins_against_its_blind_trained_twin_and_loses_the_other_way(runs: Path) -> None:
    found = compared(runs / "seeing/seed-0", runs / "blind", runs=runs)
    assert set(verdicts(found).values()) == {"win"}
    assert {each.verdict for each in found.kinds} == {"win"}
    assert [each.kind for each in found.kinds] == ["count", "colour", "place"]
    accuracy = found.headlines[0]
    assert accuracy.values == pytest.approx((0.8, 0.3), abs=0.01)
    assert accuracy.better is not None and accuracy.worse is not None
    assert accuracy.better - accuracy.worse == round(accuracy.difference.value * 180)
    assert set(verdicts(compared(runs / "blind", runs / "seeing/seed-0", runs=runs)).values()) == {"loss"}
    assert [each.key for each in found.settings] == ["data"]


def test_seeds_of_one_recipe_tie_though_their_nets_differ(tmp_path: Path) -> None:
    """On the same pictures one of them is surely better, which says nothing of the recipe."""
    root = tmp_path / "apart"
    for seed, right in ((0, good), (1, poor)):
        write_tested(root / f"seed-{seed}", right, settings={"seed_everything": seed}, captions=())
    found = compared(root / "seed-0", root / "seed-1").headlines[0]
    assert found.verdict == "tie" and found.pictures is not None and found.pictures.low > 0.3
    assert "over pictures and seeds ([0." in found.sentence
    write_tested(tmp_path / "other", poor, settings={"seed_everything": 1, "stage": {"lr": 1.0}}, captions=())
    assert compared(root / "seed-0", tmp_path / "other").headlines[0].verdict == "win", "another recipe"


def test_the_paired_interval_is_narrower(runs: Path) -> None:
    found = compared(runs / "seeing/seed-0", runs / "alike", runs=runs)
    assert all(each.pictures is None and each.narrower < 0.8 for each in found.headlines)


def test_scores_of_a_corpus_have_intervals_and_no_verdict(runs: Path) -> None:
    found = compared(runs / "seeing/seed-0", runs / "blind", runs=runs)
    assert [each.score for each in found.headlines] == ["vqa_accuracy", "cider_novel"]
    assert [each.score for each in found.further] == [*(f"bleu_{n}_novel" for n in (1, 2, 3, 4)), "rouge_l_novel"]
    assert all(not each.verdict and each.difference.low > 0 for each in found.further)
    scores = [side.runs[0].tested.scores for side in found.sides]
    for each in (*found.headlines, *found.further):
        assert each.values == pytest.approx([of[each.score]["value"] for of in scores])


def test_many_tests_are_corrected(runs: Path) -> None:
    found = compared(runs / "seeing/seed-0", runs / "seeing/seed-1", runs=runs)
    assert {each.tests for each in found.kinds} == {3} and {each.tests for each in found.headlines} == {2}
    assert all(each.p_holm is not None and each.p_holm >= each.p for each in (*found.kinds, *found.headlines))
    alone = max(found.kinds, key=lambda each: each.p)
    assert f"corrected for {alone.tests} tests" in alone.sentence


def test_seeds_are_one_side_and_widen_the_interval(runs: Path) -> None:
    sides = compared(runs / "seeing", runs / "other", runs=runs)
    assert [len(side.runs) for side in sides.sides] == [2, 2]
    given = [runs / side / seed for side in ("seeing", "other") for seed in ("seed-0", "seed-1")]
    again = compared(*given, runs=runs)
    assert [side.name for side in again.sides] == ["seeing", "other"], "as a shell writes A/seed-* B/seed-*"
    assert again.headlines == sides.headlines
    assert not any("one trained net" in note for note in sides.notes)
    single = compared(runs / "seeing/seed-0", runs / "other/seed-0", runs=runs)
    accuracy = sides.headlines[0]
    assert accuracy.values[0] == pytest.approx(
        sum(run.tested.scores["vqa_accuracy"]["value"] for run in sides.sides[0].runs) / 2
    )
    assert accuracy.difference.high - accuracy.difference.low > 0
    assert single.seeds == () and {each.side for each in sides.seeds} == {"seeing", "other"}


def test_one_folder_of_seeds_tells_its_spread(runs: Path) -> None:
    found = compared(runs / "seeing", runs=runs)
    assert found.headlines == found.kinds == ()
    accuracy = next(each for each in found.seeds if each.score == "vqa_accuracy")
    assert len(accuracy.values) == 2 and accuracy.between.value == accuracy.within.value == sum(accuracy.values) / 2
    assert accuracy.deviation == pytest.approx(abs(accuracy.values[0] - accuracy.values[1]) / 2**0.5)
    assert accuracy.between.low <= accuracy.between.value <= accuracy.between.high
    with pytest.raises(ValueError, match="found seeing/seed-0 alone, expected another run or several seeds"):
        compared(runs / "seeing/seed-0", runs=runs)


def test_samples_and_sets_of_one_run_alone_are_left_out_and_said(runs: Path, tmp_path: Path) -> None:
    write_tested(tmp_path / "less", good, ids=range(90, 240), captions=())
    found = compared(runs / "seeing/seed-0", tmp_path / "less", runs=runs)
    assert found.headlines[0].samples == 90 and found.headlines[0].verdict == "tie"
    assert found.headlines[0].detectable == 0 and "no power can be stated" in found.headlines[0].sentence
    assert "caption_novel is left out, for less was not tested on it." in found.notes
    assert "vqa: 90 samples that seeing/seed-0 alone answered are left out." in found.notes
    assert "vqa: 60 samples that less alone answered are left out." in found.notes


def changed(root: Path, **changes: object) -> Path:
    """A run whose first answer says something else."""
    file = write_tested(root, good, captions=()) / "instruct/test_answers.jsonl"
    first, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([json.dumps({**json.loads(first), **changes}) + "\n", *rest]))
    return root


def test_what_cannot_be_compared_is_refused(runs: Path, tmp_path: Path) -> None:
    own = runs / "seeing/seed-0"

    def refused(match: str, *paths: Path) -> None:
        with pytest.raises(ValueError, match=match):
            compared(*paths, runs=runs)

    refused("sample q0 of 'vqa' has the references .'x'. in odd", own, changed(tmp_path / "odd", references=["x"]))
    write_tested(tmp_path / "far", good, ids=range(500, 530), captions=())
    refused("found no sample of 'vqa' that all of seeing/seed-0, far answered", own, tmp_path / "far")
    refused("found no folder nowhere, nor one of that name in", own, Path("nowhere"))
    (tmp_path / "empty").mkdir()
    refused("found no test.json in .*empty or its stages, expected a run that was tested", own, tmp_path / "empty")
    refused("a second time", own, own)
    (write_tested(tmp_path / "gone", good) / "instruct/test_answers.jsonl").unlink()
    refused("gone/instruct/test_answers.jsonl, expected the answers of the test; test it again", own, tmp_path / "gone")


def test_what_runs_cost(runs: Path) -> None:
    cost = read_sides([runs / "blind"], runs)[0].runs[0].cost
    assert (cost.seconds, cost.steps, cost.samples, cost.tokens) == (12.0, 40, 320, 40 * 100.0)
    assert (cost.parameters, cost.trained) == (3500, 500)
    assert cost.flops == 4000 * (4 * 3500 + 2 * 500)


def test_settings_differ_by_their_dotted_keys() -> None:
    first = {
        "a.x": 1,
        "a.y": "data/world/q.json",
        "train.photos.class_path": "Photos",
        "train.photos.limit": 3,
        "val": None,
    }
    other = {"a.x": 2, "a.y": "/home/data/world/q.json", "train.texts": 4, "val.b.task": "vqa", "val.b.limit": 1}
    assert differing(first, other) == [
        ("a.x", 1, 2),
        ("train.photos", "Photos", "(not set)"),
        ("train.texts", "(not set)", 4),
        ("val", None, {"b.task": "vqa", "b.limit": 1}),
    ]


def test_what_only_one_of_two_classes_takes_is_left_out() -> None:
    first = {"net.class_path": "One", "net.depth": 2, "net.width": 8, "net.part.x": 1, "net.part.y": None}
    other = {"net.class_path": "Two", "net.inner": 3, "net.width": 9, "net.part.x": 2}
    assert differing(first, other) == [("net.class_path", "One", "Two"), ("net.part.x", 1, 2), ("net.width", 8, 9)]


def page_of(found: Comparison) -> Page:
    page = Page()
    page.feed(render(found))
    page.close()
    assert page.open == []
    return page


@pytest.mark.parametrize(
    "paths", [("seeing/seed-0", "blind"), ("seeing", "other"), ("seeing",), ("blind", "seeing/seed-0", "other/seed-1")]
)
def test_the_page_is_whole_and_needs_nothing_else(runs: Path, paths: Sequence[str]) -> None:
    found = compared(*(runs / path for path in paths), runs=runs)
    page = page_of(found)
    assert "script" not in page.tags
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert page.classes["headline"] == len(found.headlines)
    assert page.classes["difference"] == len(found.headlines) + len(found.kinds) + len(found.further) + len(found.seeds)
    for each in found.headlines:
        assert each.sentence in page.text


def test_the_page_shows_the_samples_that_differ_with_their_pictures(runs: Path) -> None:
    found = compared(runs / "seeing/seed-0", runs / "blind", runs=runs)
    questions = found.contrasts[0]
    assert len(questions.samples) == 6 and all(each.scores == (1.0, 0.0) for each in questions.samples)
    assert all(each.picture.startswith("data:image/png") for each in questions.samples)
    page = page_of(found)
    assert page.classes["answer"] == sum(len(each.samples) for each in found.contrasts)
    assert page.classes["drawn"] >= 6


def test_the_json_holds_every_number_and_no_picture(runs: Path, tmp_path: Path) -> None:
    found = compared(runs / "seeing", runs / "other", runs=runs)
    page = write_page(found, tmp_path / "to")
    assert page.read_text() == render(found)
    text = (tmp_path / "to/compare.json").read_text()
    told = json.loads(text)
    assert "data:image" not in text
    assert {each["verdict"] for each in told["headlines"]} <= {"win", "tie", "loss"}
    assert told["headlines"][0]["difference"]["low"] == found.headlines[0].difference.low
    assert [run["name"] for run in told["sides"][0]["runs"]] == ["seeing/seed-0", "seeing/seed-1"]
    assert len(told["kinds"]) == 3 and len(told["seeds"]) == 2 * 7

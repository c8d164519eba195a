"""The page of an experiment: whole, safe and self-contained."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_mllm.evaluation import run_folder
from lightning_mllm.evaluation.report import render, write_report
from lightning_mllm.evaluation.tasks import TASKS
from tests.evaluation.run_folders import write_branches, write_run

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps tags, addresses and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.classes: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.classes.update((dict(attrs).get("class") or "").split())
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(root: Path) -> Page:
    page = Page()
    page.feed((root / "report.html").read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def test_the_json_holds_scores_and_seconds(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    write_report(root)
    found = json.loads((root / "report.json").read_text())
    assert found.pop("seconds") == 61.5 + 20.0 + 7.25
    assert {"vqa_accuracy", "vqa_accuracy_blind", "cider_novel"} <= set(found)
    for score in found.values():
        assert set(score) == {"value", "low", "high"}
        assert score["low"] <= score["value"] <= score["high"]


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    write_report(root)
    page = read(root)
    assert "script" not in page.tags
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    raw = (root / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", raw)
    assert "prefers-color-scheme: dark" in raw


def test_the_page_shows_scores_answers_stages_and_time(tmp_path: Path) -> None:
    root = write_run(tmp_path / "runs" / "quick" / "net")
    write_report(root)
    page = read(root)
    for text in ("quick/net", "VQA accuracy", "CIDEr-D", "0.667", "0.083", "Which number is 4?", "a small dog"):
        assert text in page.text, text
    for text in ("align", "tune", "connector", "500 of 3,500 parameters trained (14.3 %)", "1 min 29 s", "80 steps"):
        assert text in page.text, text
    assert page.tags.count("img") == 12 + 2
    assert page.tags.count("svg") == 4
    assert page.tags.count("figure") == 4
    assert "(nothing)" in page.text


def test_the_page_tells_how_fast_a_stage_was(tmp_path: Path) -> None:
    """Medians over its steps; of memory the peak; nothing of what is not known."""
    root = write_run(tmp_path / "run")
    rows = ["step,throughput/tokens_per_second,throughput/mfu_measured,throughput/data_wait,memory/host_gb"]
    rows += ["1,1000,0.2,0.5,1.5", "2,3000,0.42,0.015,2.5", "3,3200,0.5,0.01,2.0", "4,2500,,,"]
    (root / "align" / "metrics.csv").write_text("\n".join(rows) + "\n")
    page = render(run_folder.read_report(root))
    told = "2,750 tokens/s · 42 % of the measured peak · 1.5 % waiting for data · 2.5 GB of the host"
    assert page.count(told) == 1 and page.count("tokens/s") == 1 and "the data sheet" not in page


@pytest.mark.parametrize("said", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a & b < c"])
def test_answers_are_shown_as_written(tmp_path: Path, said: str) -> None:
    root = write_run(tmp_path, said=said)
    write_report(root)
    page = read(root)
    assert said in page.text
    assert "script" not in page.tags
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)


def test_a_stage_without_curves_or_table_still_has_its_card(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    (root / "align" / "metrics.csv").unlink()
    path = root / "align" / "weights" / "stage.json"
    path.write_text(json.dumps({"stage": "align", "steps": 5, "init_from": {}}))
    write_report(root)
    page = read(root)
    assert "5 steps" in page.text
    assert page.tags.count("table") == 1


def test_scores_carry_their_stage_where_several_were_tested(tmp_path: Path) -> None:
    root = write_branches(tmp_path / "runs" / "quick" / "net")
    report = write_report(root)
    found = json.loads((root / "report.json").read_text())
    assert found.pop("seconds") == 30.0 + 3.0 + 2.0 + 2.0
    tested = {name: json.loads((root / name / "test.json").read_text()) for name in ("see", "say_opt", "say_t5")}
    assert found == {f"{stage}/{name}": s for stage, test in tested.items() for name, s in test["scores"].items()}
    assert len(found) == 12 + 3 + 3
    rows = {(row.stage, row.name): row for each in report.tests for row in each.rows}
    assert len(rows) == 6 + 2 + 2
    twin = rows["see", "image_retrieval_r1"].blind
    assert twin is not None and twin["value"] == pytest.approx(1 / 30)
    assert rows["say_opt", "choice_accuracy_science"].blind is None


def test_the_page_groups_several_stages(tmp_path: Path) -> None:
    root = write_branches(tmp_path)
    write_report(root)
    page = read(root)
    raw = (root / "report.html").read_text(encoding="utf-8")
    assert page.classes["headline"] == 2 + 2 + 2, "R@1 both ways, then two headlines a stage"
    assert "Image retrieval R@1see" in page.text and "Text retrieval R@10" in page.text
    places = [raw.index(f"<h3>{name}</h3>") for name in ("see", "say_opt", "say_t5")]
    assert places == sorted(places)
    assert page.tags.count("img") == 5 * 6


@pytest.mark.parametrize("suffix", ["", "_novel"])
def test_every_score_has_its_label_and_every_headline_its_card(suffix: str) -> None:
    scores = [score for task in TASKS.values() for score in task.scores]
    found = {f"{score.name}{suffix}": {"value": 0.5, "low": 0.4, "high": 0.6} for score in scores}
    tested = run_folder.Tested(stage="tune", scores=found, samples={}, clusters={}, examples=[], seconds=1.0)
    stage = run_folder.StageReport(name="tune", steps=1, seconds=1.0, freeze_table=[], metrics={})
    page = Page()
    page.feed(render(run_folder.Report(name="net", stages=[stage], tests=[tested])))
    assert all(score.label in page.text for score in scores)
    assert not any(score.name in page.text for score in scores if "_" in score.name)
    assert page.classes["headline"] == sum(score.headline for score in scores) == len(TASKS) + 2, (
        "retrieval and MME have two"
    )
    assert page.text.count("novel") == (len(scores) + page.classes["headline"] if suffix else 0)


def test_a_score_that_no_task_gives_is_refused(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    path = root / "tune" / "test.json"
    results = json.loads(path.read_text())
    results["scores"]["vqa_acuracy"] = results["scores"]["vqa_accuracy"]
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"tune/test.json: found the score 'vqa_acuracy', which no task gives"):
        write_report(root)


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    root = write_run(tmp_path)
    write_report(root)
    first = (root / "report.html").read_bytes()
    write_report(root)
    assert (root / "report.html").read_bytes() == first

"""Numbers and page of a small synthesis."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_modules.synthesis.report import measure, write_output
from data_modules.synthesis.verdicts import verdicts
from tests.data_modules.synthesis.outcomes import ABOUT, ends, files


def test_numbers_of_the_report() -> None:
    found = measure(list(verdicts(ends())), ABOUT)
    assert found["total"] == {"requests": 7, "accepted": 2, "repaired": 1, "rejected": 2, "refused": 1, "open": 1}
    assert found["kinds"]["conversation"]["words"] == {
        **dict.fromkeys(found["kinds"]["detail"]["words"], 0),
        "1": 2,
        "6-10": 2,
    }
    reasons = {name: (row["answers"], row["repaired"]) for name, row in found["reasons"].items()}
    assert reasons == {
        "refusal": (1, 1),
        "length": (1, 0),
        "wrong count": (1, 0),
        "refused": (1, 0),
        "duplicate": (1, 0),
    }
    # Six answers and a repair each of two: seven calls that were paid for.
    assert found["tokens"] == {"prompt": 700, "completion": 70, "lost": 0}
    assert found["money"] == pytest.approx(700 * 2e-6 + 70 * 8e-6)
    assert found["first_words"]["questions"][0] == ("how many", 2)
    assert measure([], replace(ABOUT, prices=None))["money"] is None


def test_the_page_shows_everything_and_needs_nothing_else(tmp_path: Path) -> None:
    files(tmp_path)
    page = (tmp_path / "out/report.html").read_text()
    assert json.loads((tmp_path / "out/report.json").read_text())["total"]["requests"] == 7
    assert "Dogs &amp; &lt;beaches&gt;" in page
    assert "next to the &lt;sea&gt;" in page
    assert "<script" not in page and "http" not in page
    # Two conversations and a description, and three in quarantine, whose pictures are the same two and one missing.
    assert page.count("data:image/jpeg;base64,") == 5
    assert page.count("Repaired: found") == 1
    assert "expected 2 as in the picture" in page


def test_the_same_answers_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_output(tmp_path / name, list(verdicts(ends())), ABOUT, {})
    for file in ("instructions.json", "quarantine.jsonl", "README.md", "report.json", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        path.name for path in (tmp_path / "b").iterdir()
    )
    assert len(list((tmp_path / "a").iterdir())) == 5


def test_nothing_at_all_can_be_reported(tmp_path: Path) -> None:
    write_output(tmp_path, [], replace(ABOUT, prices=None), {})
    assert json.loads((tmp_path / "instructions.json").read_text()) == []
    assert "None was." in (tmp_path / "report.html").read_text()

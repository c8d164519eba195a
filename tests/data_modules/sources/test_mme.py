from __future__ import annotations

from pathlib import Path

import pytest

from data_modules.sources import Mme
from data_modules.sources.mme import SUBTASKS
from lightning_mllm.evaluation.metrics.mme import SUBTASKS as SCORED
from tests.data_modules.files import touch
from tests.data_modules.sources.held_out import samples, turns

ENDING = "Please answer yes or no."


def mme(root: Path) -> str:
    """Both layouts: pictures beside the texts, and in folders of their own."""
    touch(root, "existence/001.jpg", "OCR/0001.png", "posters/images/tt1.jpg")
    (root / "existence/001.txt").write_text(f"Is there a dog? {ENDING}\tYes\nIs there a cat? {ENDING}\tNo\n")
    (root / "OCR/0001.txt").write_text(f"Is it a logo?  {ENDING}\tYes\n\nIs it red? {ENDING}\tNo\n\n")
    (root / "posters/questions_answers_YN").mkdir()
    lines = f"Is this film Heat? {ENDING}\tYes\r\nIs this film Alien? {ENDING}\tNo\r\n"
    (root / "posters/questions_answers_YN/tt1.txt").write_text(lines, newline="")
    return str(root)


def test_both_layouts_are_read(tmp_path: Path) -> None:
    given = samples(Mme(mme(tmp_path)))
    assert [(each.id, each.question_type, each.references[0]) for each in given] == [
        ("existence/001.jpg#1", "existence", "yes"),
        ("existence/001.jpg#2", "existence", "no"),
        ("posters/tt1.jpg#1", "posters", "yes"),
        ("posters/tt1.jpg#2", "posters", "no"),
        ("OCR/0001.png#1", "OCR", "yes"),
        ("OCR/0001.png#2", "OCR", "no"),
    ]
    assert turns(given[0]) == [
        "<image>\nIs there a dog?\nAnswer the question using a single word or phrase.",
        "yes",
    ]
    assert given[2].images[0].name.endswith("posters/images/tt1.jpg") and given[0].task == "mme"
    (first, *_) = samples(Mme(mme(tmp_path / "again"), prompt="mme/published", subtasks=["OCR"]))
    assert turns(first)[0] == f"<image>\nIs it a logo? {ENDING}"


def test_the_scorer_knows_the_same_subtasks() -> None:
    assert SUBTASKS == SCORED and len(SUBTASKS) == 14


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Is it red? Yes", r"found 'Is it red\? Yes', expected a question, a tab, and Yes or No"),
        ("Is it red?\tmaybe", "expected a question, a tab, and Yes or No"),
        (f"{ENDING}\tYes", "'question' is empty"),
        ("Is it caf\xe9?\tYes", "found a byte that is not UTF-8 at offset 9, expected UTF-8 text"),
    ],
)
def test_mme_refuses(tmp_path: Path, line: str, rule: str) -> None:
    root = mme(tmp_path)
    (tmp_path / "OCR/0001.txt").write_text(f"Is it a logo? {ENDING}\tYes\n{line}\n", encoding="latin-1")
    with pytest.raises(ValueError, match=rf"OCR/0001.txt:2 \(id OCR/0001.png#2\): .*{rule}"):
        Mme(root).load()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = mme(tmp_path)
    (tmp_path / "OCR/0001.png").unlink()
    with pytest.raises(ValueError, match=r"OCR/0001.txt:1 .*image .*OCR/0001.jpg not found"):
        Mme(root).load()
    with pytest.raises(ValueError, match="scene not found"):
        Mme(root, subtasks=["scene"]).load()
    with pytest.raises(ValueError, match="nowhere not found"):
        Mme(str(tmp_path / "nowhere")).load()
    with pytest.raises(ValueError, match="subtasks: found 'colour', expected some of existence, "):
        Mme(root, subtasks=["colour"])

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_modules.sources import ChartQa, DocVqa
from tests.data_modules.files import touch, write
from tests.data_modules.sources.held_out import samples, score, turns


def chart(query: str = "What is the value of the lowest bar?", label: str = "23", **changes: Any) -> dict[str, Any]:
    return {"imgname": "41699051005347.png", "query": query, "label": label, **changes}


def charts(folder: Path, records: list[Any]) -> ChartQa:
    path = write(folder / "val_human.json", records)
    return ChartQa(path, touch(folder / "png", "41699051005347.png", "2.png"), prompt="document/single_word")


def document(id: int = 337, **changes: Any) -> dict[str, Any]:
    known = {"docId": 279, "ucsf_document_page_no": "1", "question_types": ["table/list"], "data_split": "val"}
    asked = {"question": "what is the date mentioned?", "image": "documents/xnbl0037_1.png"}
    return {"questionId": id, **asked, "answers": ["1/8/93", "1/8/1993", "1/8/93 "], **known, **changes}


def documents(folder: Path, records: list[Any]) -> DocVqa:
    content = {"dataset_name": "docvqa", "dataset_version": "1.0", "dataset_split": "val", "data": records}
    images = touch(folder / "images", "documents/xnbl0037_1.png")
    return DocVqa(write(folder / "val_v1.0.json", content), images, prompt="document/short_answer")


def test_questions_about_charts(tmp_path: Path) -> None:
    found = samples(charts(tmp_path, [chart(), chart("Which year?", "2019"), chart(imgname="2.png")]))
    assert [each.id for each in found] == ["41699051005347.png#0", "41699051005347.png#1", "2.png#0"]
    assert turns(found[1]) == ["<image>\nWhich year?\nAnswer the question using a single word or phrase.", "2019"]
    assert found[0].references == ("23",) and found[0].images[0].name.endswith("png/41699051005347.png")
    assert score(found) == 1.0 and score(found, right=False) == 0.0


def test_questions_about_documents(tmp_path: Path) -> None:
    (found,) = samples(documents(tmp_path, [document()]))
    assert turns(found) == ["<image>\nQuestion: what is the date mentioned? Short answer:", "1/8/93"]
    assert found.references == ("1/8/93", "1/8/1993", "1/8/93") and found.id == "337"
    assert score([found]) == 1.0 and score([found], right=False) == 0.0


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"label": 23}, "'label' is a number, expected a text"),
        ({"query": ""}, "'query' is empty, expected a text"),
        ({"imgname": "no.png"}, "not found"),
    ],
)
def test_bad_charts(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError) as error:
        charts(tmp_path, [chart(), chart(**changes)]).load()
    assert "val_human.json: record 1 (imgname " in str(error.value) and rule in str(error.value)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"answers": None}, "'answers' is null, expected a list"),
        ({"answers": []}, "'answers' is empty, expected at least one text"),
        ({"question": 1}, "'question' is a number, expected a text"),
    ],
)
def test_bad_documents(tmp_path: Path, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError) as error:
        documents(tmp_path, [document(**changes)]).load()
    assert "val_v1.0.json: data[0] (questionId 337): " in str(error.value) and rule in str(error.value)

"""`mllm submit`: answers in the forms of the benchmarks, each read as its own tool reads it."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lightning_mllm.cli import main
from lightning_mllm.evaluation.metrics import MmeScores
from lightning_mllm.evaluation.metrics.mme import read_yes_or_no
from lightning_mllm.evaluation.submission import FORMS
from tests.evaluation.expected_sets import write_lines


def submitted(tested: Path, form: str, to: Path, *options: str) -> Path:
    main(["submit", str(tested / "runs/toy"), "--set", form, "--to", str(to), f"--runs={tested}/runs", *options])
    return to


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pope_takes_answers_in_the_order_of_its_labels(tested: Path, tmp_path: Path) -> None:
    rows = lines(submitted(tested, "pope", tmp_path / "pope.jsonl"))
    assert [(each["question_id"], each["answer"], each["text"]) for each in rows] == [
        (1, "yes", "yes"),
        (2, "yes", "yes"),
        (3, "no", "no"),
    ]
    assert rows[0]["question"] == "Is there a 1 in the image?"


def test_mme_takes_a_folder_that_its_tool_scores(tested: Path, tmp_path: Path) -> None:
    folder = submitted(tested, "mme", tmp_path / "mme")
    assert sorted(each.name for each in folder.iterdir()) == ["code_reasoning.txt", "count.txt", "existence.txt"]
    rows = [line.split("\t") for line in (folder / "count.txt").read_text().splitlines()]
    assert rows == [
        ["b.png", "Is it b? Please answer yes or no.", "Yes", "yes"],
        ["b.png", "Is it d? Please answer yes or no.", "No", "yes"],
    ]
    # calculation.py: two lines are a picture; accuracy + accuracy+ of each file.
    score = 0.0
    for file in folder.iterdir():
        right = [read_yes_or_no(said) == label.lower() for _, _, label, said in map(_cells, file.open())]
        pairs = list(zip(right[::2], right[1::2], strict=True))
        score += 100 * sum(right) / len(right) + 100 * sum(map(all, pairs)) / len(pairs)
    scores = json.loads((tested / "runs/toy/instruct/test.json").read_text())["scores"]
    assert score == scores[MmeScores.by_kind]["value"]


def _cells(line: str) -> list[str]:
    return line.split("\t")


def test_mmbench_takes_its_table_with_predictions(tested: Path, tmp_path: Path) -> None:
    annotations = ("--annotations", str(tested / "mmbench.tsv"))
    file = submitted(tested, "mmbench", tmp_path / "answers.tsv", *annotations)
    header, *rows = csv.reader(file.open(), delimiter="\t")
    shown = ["index", "question", "A", "B", "C", "D", "answer", "category", "l2-category", "split"]
    assert header == [*shown, "prediction"]
    assert [(row[0], row[2:7], row[-1]) for row in rows] == [
        ("3", ["a ball", "a cube", "", "", "A"], "A"),
        ("7", ["x", "y", "z", "", "C"], "C"),
        ("1000003", ["a cube", "a ball", "", "", "B"], "B"),
        ("1000007", ["y", "z", "x", "", "B"], "C"),
        ("2000007", ["z", "x", "y", "", "A"], "A"),
    ]
    sheet = submitted(tested, "mmbench", tmp_path / "answers.xlsx", *annotations)
    with zipfile.ZipFile(sheet) as archive:
        tree = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    read = [
        {cell.attrib["r"]: "".join(cell.itertext()) for cell in row.iter(f"{space}c")}
        for row in tree.iter(f"{space}row")
    ]
    assert [each for each in read[0].values()] == header
    assert read[2]["A3"] == "7" and read[2]["K3"] == "C" and "F3" not in read[2]
    with pytest.raises(SystemExit):
        submitted(tested, "mmbench", tmp_path / "answers.json", *annotations)


def test_open_answers_go_to_their_judges(tested: Path, tmp_path: Path) -> None:
    vet = json.loads(submitted(tested, "mm_vet", tmp_path / "vet.json").read_text())
    assert vet == {f"v1_{n}": f"{n}<OR>it said" for n in range(3)}
    bench = lines(submitted(tested, "llava_bench", tmp_path / "bench.jsonl"))
    assert bench[1] == {
        "question_id": 1,
        "prompt": "Tell of 1.",
        "text": "GPT-4 says so. said",
        "answer_id": "toy/instruct/1",
        "model_id": "toy/instruct",
        "metadata": {},
    }


def test_seed_bench_and_lmms_eval(tested: Path, tmp_path: Path) -> None:
    seed = lines(submitted(tested, "seed_bench", tmp_path / "seed.jsonl"))
    assert seed == [{"question_id": f"s{n}", "prediction": letter} for n, letter in ((1, "A"), (2, "C"), (3, "C"))]
    log = json.loads(
        submitted(tested, "lmms_eval", tmp_path / "log.json", "--part", "random", "--task", "pope").read_text()
    )
    # As lmms_eval/models/simple/from_log.py reads it.
    answers = {each["doc_id"]: each["resps"][0][0] for each in log["logs"]}
    assert answers == {0: "yes", 1: "yes", 2: "no"} and log["model_configs"]["task"] == "pope"
    assert log["args"] == {"model": "toy/instruct", "model_args": "", "limit": None}


ROWS = [
    {"task": "vqa", "part": "", "id": "42", "prompt": "<image>\nWho?", "answer": "The two Dogs."},
    {"task": "vqa", "part": "vizwiz", "id": "VizWiz_test_1.jpg", "prompt": "", "answer": "unanswerable"},
    {"task": "vqa", "part": "", "id": "43", "prompt": "", "answer": "a", "blind": True},
    {"task": "caption", "part": "", "id": "val2014/COCO_val2014_000000391895.jpg", "prompt": "", "answer": "A dog."},
    {"task": "choice", "part": "", "id": "s1", "prompt": "", "answer": "two", "candidates": ["one", "two"]},
]


@pytest.mark.parametrize(
    ("form", "options", "content"),
    [
        ("vqav2", ("--part", ""), [{"question_id": 42, "answer": "2 dogs"}]),
        ("vizwiz", (), [{"image": "VizWiz_test_1.jpg", "answer": "unanswerable"}]),
        ("caption", (), [{"image_id": 391895, "caption": "A dog."}]),
    ],
)
def test_predictions_of_test_splits(tmp_path: Path, form: str, options: tuple[str, ...], content: object) -> None:
    answers = write_lines(tmp_path / "answers.jsonl", ROWS)
    main(["submit", answers, "--set", form, "--to", str(tmp_path / "out.json"), *options])
    assert json.loads((tmp_path / "out.json").read_text()) == content


def test_a_ranked_choice_is_its_letter(tmp_path: Path) -> None:
    main(["submit", write_lines(tmp_path / "a.jsonl", ROWS), "--set=seed_bench", f"--to={tmp_path}/s.jsonl"])
    assert lines(tmp_path / "s.jsonl") == [{"question_id": "s1", "prediction": "B"}]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set=mme"], "found vqa part '', vqa part 'vizwiz', .*expected a set of mme"),
        (["--set=vqav2"], "expected a set of vqa or vqa_official; --part names one"),
        (["--set=vqav2", "--part=x"], "expected a set of vqa or vqa_official of the part 'x'"),
        (["--set=lmms_eval", "--part=vizwiz"], "--task: found none, expected what lmms-eval calls the set"),
        (["--set=vqa"], "submit: argument --set: invalid choice: 'vqa'"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    answers = write_lines(tmp_path / "answers.jsonl", ROWS)
    with pytest.raises(SystemExit) as left:
        main(["submit", answers, *arguments, f"--to={tmp_path}/out"])
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.count("\n") == 1
    assert re.search(sentence, told), told
    assert not (tmp_path / "out").exists()


def test_captions_are_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `per: caption` ids are those of captions, and a server would take them for other images."""
    row = {"task": "caption", "part": "", "prompt": "", "answer": "a dog", "pictures": ["val2014/1.jpg"]}
    answers = write_lines(tmp_path / "answers.jsonl", [{**row, "id": "7"}, {**row, "id": "8"}])
    with pytest.raises(SystemExit):
        main(["submit", answers, "--set=caption", f"--to={tmp_path}/out.json"])
    told = capsys.readouterr().err
    assert "found two captions of val2014/1.jpg, expected one; ids are those of images with `per: image`" in told
    assert not (tmp_path / "out.json").exists()


def test_another_set_is_not_taken_for_the_one_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"task": "judged", "part": "llava_bench", "id": "0", "prompt": "", "answer": "a"}
    answers, to = write_lines(tmp_path / "answers.jsonl", [row]), tmp_path / "out.json"
    with pytest.raises(SystemExit):
        main(["submit", answers, "--set=mm_vet", f"--to={to}"])
    assert "found judged part 'llava_bench', expected a set of judged; --part names one" in capsys.readouterr().err
    main(["submit", answers, "--set=lmms_eval", "--task=x", f"--to={to}"])
    main(["submit", answers, "--set=mm_vet", "--part=llava_bench", f"--to={to}"])
    assert json.loads(to.read_text()) == {"0": "a"}


def test_what_is_no_answer_or_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "odd.jsonl", [{"id": 1}])
    for path, told in (
        ("empty", "found no test_answers.jsonl and no answers.jsonl"),
        ("gone", "found no folder"),
        ("odd.jsonl", "odd.jsonl:1: found no answer, expected a line"),
    ):
        with pytest.raises(SystemExit):
            main(["submit", str(tmp_path / path), "--set=pope", f"--to={tmp_path}/out"])
        assert told in capsys.readouterr().err
    assert all(form.title and form.write for form in FORMS.values())

"""Answers in the forms that benchmarks' servers, their own tools and lmms-eval take: one table of forms.

test_answers.jsonl or answers.jsonl of a stage --> rows of one test set --> a file, or a folder of files
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mllm.evaluation.metrics.choice_letter import LETTERS, PASS
from lightning_mllm.evaluation.metrics.vqa_accuracy import normalise
from lightning_mllm.evaluation.xlsx import workbook
from lightning_mllm.weights.plain_files import lines, parse

Rows = Sequence[Mapping[str, Any]]
"""Of one set, or of several one after another: lines of `test_answers.jsonl`, or of `answers.jsonl`."""
Files = Mapping[str, bytes]
"""Name below the folder -> content; the name is empty where the form is one file."""

WORD = "Answer the question using a single word or phrase."
"""What LLaVA's prompts end with, and published questions do not."""
MME_ENDING = "Please answer yes or no."


@dataclass(frozen=True, kw_only=True)
class About:
    """What a form may need beside the answers."""

    model: str
    """A name of what answered."""
    suffix: str
    """Of the file to write: '.xlsx'."""
    annotations: Path | None = None
    """The published file of the questions."""
    task: str = ""
    """What lmms-eval calls the set."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How one benchmark takes answers."""

    title: str
    tasks: tuple[str, ...]
    """Of the sets that it is made of; empty for any that are answered."""
    write: Callable[[Rows, About], Files]
    folder: bool = False
    """Whether it is a folder of files."""


def _vqa(key: str, number: type) -> Callable[[Rows, About], Files]:
    """[{KEY, answer}], answers normalised as the released convert_vqav2_for_submission.py of LLaVA does."""

    def write(rows: Rows, about: About) -> Files:
        return _json([{key: _id(row, number), "answer": normalise(row["answer"])} for row in rows])

    return write


def _captions(rows: Rows, about: About) -> Files:
    """[{image_id, caption}] of coco-caption; the id of an image is the number that its name ends with."""
    found, seen = [], set[tuple[str, ...]]()
    for row in rows:
        pictures = tuple(row.get("pictures", ()))
        if pictures and pictures in seen:
            raise ValueError(
                f"submit: found two captions of {', '.join(pictures)}, expected one; ids are those of images with"
                " `per: image` of the source"
            )
        seen.add(pictures)
        number = re.search(r"(\d+)(\.\w+)?$", row["id"])
        if number is None:
            raise ValueError(f"submit: found the id '{row['id']}', expected one that ends with the number of an image")
        found.append({"image_id": int(number.group(1)), "caption": row["answer"]})
    return _json(found)


def _pope(rows: Rows, about: About) -> Files:
    """A line for each question with `answer`, as POPE's evaluate.py reads it, and `text`, as LLaVA's eval_pope.py."""
    return _lines(
        {"question_id": _id(row, int), "question": _question(row), "answer": row["answer"], "text": row["answer"]}
        for row in rows
    )


def _mme(rows: Rows, about: About) -> Files:
    """SUBTASK.txt with 'picture, question, answer, what was said' a line, as eval_tool/calculation.py reads it."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        subtask, _, picture = row["id"].rpartition("#")[0].partition("/")
        if not picture or not row.get("references"):
            raise ValueError(
                f"submit: found the sample '{row['id']}', expected one of MME with its answer; test the run"
            )
        cells = (picture, f"{_question(row)} {MME_ENDING}", row["references"][0].capitalize(), row["answer"])
        lines.setdefault(subtask, []).append("\t".join(" ".join(cell.split()) for cell in cells))
    return {f"{subtask}.txt": ("\n".join(each) + "\n").encode() for subtask, each in lines.items()}


def _mmbench(rows: Rows, about: About) -> Files:
    """The published table without its pictures, with a column `prediction`: .xlsx as the server takes it, or .tsv."""
    if about.annotations is None:
        raise ValueError("--annotations: found none, expected the published .tsv file, whose columns the server takes")
    if about.suffix not in (".xlsx", ".tsv"):
        raise ValueError(f"--to: found a file named *{about.suffix}, expected .xlsx or .tsv")
    columns, published = _table(about.annotations)
    kept = [each for each in columns if each not in ("image", "hint", "comment", "source")]
    table: list[list[str | int]] = [[*kept, "prediction"]]
    said = {row["id"]: row["answer"] for row in rows}
    for index in sorted({*published, *(int(id) for id in said)}):
        cells = published.get(index) or _moved(published, index, about.annotations)
        if str(index) not in said:
            raise ValueError(f"submit: found no answer to index {index} of {about.annotations}, expected one to each")
        table.append([*(int(index) if each == "index" else cells[each] for each in kept), said[str(index)]])
    if about.suffix == ".xlsx":
        return {"": workbook(table)}
    file = io.StringIO()
    csv.writer(file, delimiter="\t", lineterminator="\n").writerows(table)
    return {"": file.getvalue().encode()}


def _table(path: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """Columns of a published table, and its rows by index, without their pictures."""
    csv.field_size_limit(1 << 28)
    found: dict[int, dict[str, str]] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", restval="")
        columns = list(reader.fieldnames or ())
        if missing := [each for each in ("index", "question", "A", "B") if each not in columns]:
            raise ValueError(f"{path}: found no column '{missing[0]}', expected a table of MMBench")
        for row in reader:
            if not row["index"].isdecimal():
                raise ValueError(f"{path}:{reader.line_num}: found the index '{row['index']}', expected a number")
            found[int(row["index"])] = {key: row[key] for key in columns if key != "image"}
    return columns, found


def _moved(published: Mapping[int, Mapping[str, str]], index: int, path: Path) -> dict[str, str]:
    """A row of a later pass that the table lacks: the choices of the first pass, each some places further on."""
    first = published.get(index % PASS)
    if first is None:
        raise ValueError(f"submit: found an answer to index {index}, expected one of {path}")
    letters = [each for each in LETTERS if first.get(each, "").strip().lower() not in ("", "nan", "none")]
    places = range(len(letters))
    turn = index // PASS
    moved = {letters[place]: first[letters[(place + turn) % len(letters)]] for place in places}
    answer = first.get("answer", "")
    if answer in letters:
        moved["answer"] = letters[(letters.index(answer) - turn) % len(letters)]
    return {**first, **moved}


def _mm_vet(rows: Rows, about: About) -> Files:
    """{id: answer} of mm-vet_evaluator.py."""
    return _json({row["id"]: row["answer"] for row in rows})


def _llava_bench(rows: Rows, about: About) -> Files:
    """A line for each question, as LLaVA's model_vqa.py writes it and its eval_gpt_review_bench.py reads it."""
    return _lines(
        {
            "question_id": _id(row, int),
            "prompt": _question(row),
            "text": row["answer"],
            "answer_id": f"{about.model}/{row['id']}",
            "model_id": about.model,
            "metadata": {},
        }
        for row in rows
    )


def _seed_bench(rows: Rows, about: About) -> Files:
    """{question_id, prediction} a line, as LLaVA's convert_seed_for_submission.py writes it for the leaderboard."""
    return _lines({"question_id": row["id"], "prediction": _letter(row)} for row in rows)


def _letter(row: Mapping[str, Any]) -> str:
    """What was said, or of ranked choices the letter of the likeliest."""
    if "candidates" not in row:
        return row["answer"].strip()
    return LETTERS[list(row["candidates"]).index(row["answer"])]


def _lmms_eval(rows: Rows, about: About) -> Files:
    """A log that `lmms_eval --model from_log --model_args logs=FOLDER` answers from.

    Form of lmms_eval/models/simple/from_log.py. `doc_id` is the position of a sample, which is lmms-eval's where both
    read the published order.
    """
    if not about.task:
        raise ValueError("--task: found none, expected what lmms-eval calls the set, such as pope")
    logs = [{"doc_id": number, "resps": [[row["answer"]]]} for number, row in enumerate(rows)]
    args = {"model": about.model, "model_args": "", "limit": None}
    return _json({"args": args, "model_configs": {"task": about.task}, "logs": logs})


FORMS: dict[str, Form] = {
    "vqav2": Form(title="VQAv2's server", tasks=("vqa", "vqa_official"), write=_vqa("question_id", int)),
    "vizwiz": Form(title="VizWiz' server", tasks=("vqa", "vqa_official"), write=_vqa("image", str)),
    "caption": Form(title="COCO Caption's and NoCaps' servers", tasks=("caption",), write=_captions),
    "pope": Form(title="POPE's evaluate.py", tasks=("pope",), write=_pope),
    "mme": Form(title="MME's eval_tool", tasks=("mme",), write=_mme, folder=True),
    "mmbench": Form(title="MMBench's server", tasks=("mmbench",), write=_mmbench),
    "seed_bench": Form(title="SEED-Bench's leaderboard", tasks=("seed_bench", "choice"), write=_seed_bench),
    "mm_vet": Form(title="MM-Vet's evaluator", tasks=("judged",), write=_mm_vet),
    "llava_bench": Form(title="LLaVA-Bench's reviews", tasks=("judged",), write=_llava_bench),
    "lmms_eval": Form(title="lmms-eval's from_log", tasks=(), write=_lmms_eval),
}


def rows_of(path: Path, form: str, part: str | None) -> list[Mapping[str, Any]]:
    """The lines of one test set in a file of answers, in order; blind twins are left out.

    Args:
        path: `test_answers.jsonl`, or `answers.jsonl` of a prediction.
        form: a name of FORMS.
        part: of the set, as in `Evaluation`; None for the only one that the form takes, or the one of the form's name,
            but not one of another form's name.

    Raises:
        ValueError: a line is no answer, there is no such set, or there are several.
    """
    sets: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for number, row in enumerate(_read(path), 1):
        if not isinstance(row, dict) or not {"task", "part", "id", "answer"} <= row.keys():
            raise ValueError(
                f"{path}:{number}: found no answer, expected a line as mllm test or mllm predict writes it"
            )
        if not row.get("blind"):
            sets.setdefault((row["task"], row["part"]), []).append(row)
    tasks = FORMS[form].tasks
    fitting = {key: each for key, each in sets.items() if not tasks or key[0] in tasks}
    chosen = [key for key in fitting if part is None or key[1] == part]
    if len(chosen) > 1:
        chosen = [key for key in chosen if key[1] == form] or chosen
    if len(chosen) == 1 and (part is not None or not tasks or chosen[0][1] not in FORMS.keys() - {form}):
        return fitting[chosen[0]]
    told = ", ".join(f"{task} part '{name}'" for task, name in sets) or "nothing"
    what = "a set of " + " or ".join(tasks) if tasks else "one set"
    where = "" if part is None else f" of the part '{part}'"
    raise ValueError(f"{path}: found {told}, expected {what}{where}{'; --part names one' if chosen else ''}")


def _read(path: Path) -> list[Any]:
    return [parse(line, f"{path}:{number}", "the answers of a stage") for number, line in lines(path)]


def _id(row: Mapping[str, Any], number: type) -> str | int:
    """The id of a sample, as a number where the form has one."""
    return int(row["id"]) if number is int and row["id"].isdecimal() else row["id"]


def _question(row: Mapping[str, Any]) -> str:
    """The user turn without its picture and without what LLaVA's prompts and MME's questions end with."""
    text = row["prompt"].replace("<image>", "").strip()
    return text.removesuffix(WORD).strip().removesuffix(MME_ENDING).strip()


def _json(content: object) -> Files:
    return {"": (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()}


def _lines(rows: Iterable[object]) -> Files:
    return {"": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()}

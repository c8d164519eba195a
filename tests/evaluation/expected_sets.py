"""Small sets in the published formats of POPE, MME, MMBench, SEED-Bench, MM-Vet and LLaVA-Bench, and a test of them."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data_modules.evaluation import EvaluationSet
from data_modules.module import MultimodalDataModule
from data_modules.sources import LlavaBench, MmBench, Mme, MmVet, Pope, SeedBench
from lightning_mllm.contracts import Batch
from tests.toy import Toy, ToyProcessor
from tests.training.runs import settings, trainer

ENDING = "Please answer yes or no."
WRONG = {"pope": {"2"}, "mme": {"count/b.png#2"}, "mmbench": {"1000007"}, "seed_bench": {"s2"}}
"""Ids of the samples that are answered wrongly, by task."""


def picture(path: Path, shade: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 90, 9)).save(path, "PNG")
    return path.name


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def write_mmbench(path: Path, answered: bool = True) -> str:
    file, shown = io.BytesIO(), []
    for shade in (10, 200):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, 1, 1)).save(file, "PNG")
        shown.append(base64.b64encode(file.getvalue()).decode())
    answer = ["answer"] if answered else []
    columns = ["index", "question", "hint", "A", "B", "C", "D", *answer, "category", "image", "l2-category", "split"]
    rows = [
        [3, "Which is red?", "", "a ball", "a cube", "", "", *["A"] * answered, "color", shown[0], "perception", "dev"],
        [7, "Which is blue?", "Look.", "x", "y", "z", "", *["C"] * answered, "logic", shown[1], "reasoning", "dev"],
    ]
    with open(path, "w", newline="") as table:
        csv.writer(table, delimiter="\t").writerows([columns, *rows])
    return str(path)


def write_sets(root: Path) -> dict[str, EvaluationSet]:
    """All sets, each of a few samples, their names being those of the forms that answers are submitted in."""
    images = root / "images"
    names = [picture(images / f"COCO_val2014_{n:012d}.jpg", 40 * n) for n in range(1, 4)]
    labels = ("yes", "no", "no")
    questions = [
        {"question_id": n, "image": name, "text": f"Is there a {n} in the image?", "label": label}
        for n, (name, label) in enumerate(zip(names, labels, strict=True), 1)
    ]
    for subtask, name, shade in (("existence", "a", 5), ("count", "b", 100), ("code_reasoning", "c", 200)):
        picture(root / f"mme/{subtask}/{name}.png", shade)
        lines = f"Is it {name}? {ENDING}\tYes\nIs it d? {ENDING}\tNo\n"
        (root / f"mme/{subtask}/{name}.txt").write_text(lines)
    choices = {f"choice_{letter}": word for letter, word in zip("abcd", ("one", "two", "three", "four"), strict=True)}
    seed = [
        {"question_id": f"s{n}", "question": "How many?", "data_id": name, "data_type": "image", **choices}
        | {"answer": "ABC"[n - 1], "question_type_id": 5 if n < 3 else 1}
        for n, name in enumerate(names, 1)
    ]
    kinds = {"Instances Counting": 5, "Scene Understanding": 1}
    (root / "seed.json").write_text(json.dumps({"questions": seed, "question_type": kinds}))
    vet = {
        f"v1_{n}": {"imagename": name, "question": f"What is {n}?", "answer": f"{n}<OR>it", "capability": capability}
        for n, (name, capability) in enumerate(zip(names, (["ocr"], ["ocr", "math"], ["rec"]), strict=True))
    }
    (root / "mm-vet.json").write_text(json.dumps(vet))
    bench = [
        {"question_id": n, "image": name, "text": f"Tell of {n}.", "category": category}
        for n, (name, category) in enumerate(zip(names, ("conv", "detail", "complex"), strict=True))
    ]
    told = [{"question_id": each["question_id"], "text": "GPT-4 says so."} for each in bench]
    context = [{"image": name, "caption": f"A picture {name}."} for name in names]
    write_lines(root / "context.jsonl", context)
    files = write_lines(root / "questions.jsonl", bench), str(images), write_lines(root / "answers_gpt4.jsonl", told)
    pope = Pope(write_lines(root / "coco_pope_random.json", questions), str(images))
    return {
        "pope": EvaluationSet(source=pope, task="pope", part="random"),
        "mme": EvaluationSet(source=Mme(str(root / "mme")), task="mme"),
        "mmbench": EvaluationSet(source=MmBench(write_mmbench(root / "mmbench.tsv")), task="mmbench"),
        "seed_bench": EvaluationSet(source=SeedBench(str(root / "seed.json"), str(images)), task="seed_bench"),
        "mm_vet": EvaluationSet(source=MmVet(str(root / "mm-vet.json"), str(images)), task="judged", part="mm_vet"),
        "llava_bench": EvaluationSet(source=LlavaBench(*files), task="judged", part="llava_bench"),
    }


class Scripted(Toy):
    """Says what is right, but for some samples."""

    def answers(self, batch: Batch, part: str = "") -> list[str]:
        super().answers(batch, part)  # The net writes, and is not listened to.
        other = {"yes": "no", "no": "yes", "A": "B", "B": "C", "C": "A"}
        rows = zip(batch.ids, batch.tasks, batch.references, strict=True)
        return [
            other[first] if id in WRONG.get(task, ()) else f"{first} said" if task == "judged" else first
            for id, task, (first, *_) in rows
        ]


def take_test(root: Path) -> Path:
    """The folder of a stage that was tested on all sets: root/runs/toy/instruct."""
    folder = root / "runs/toy/instruct"
    torch.manual_seed(0)
    data = MultimodalDataModule(test=write_sets(root), eval_batch=4, processor=ToyProcessor())
    own = trainer(folder, logger=False, callbacks=[])
    own.test(Scripted(stage=settings("instruct")), datamodule=data, verbose=False)
    record = {"stage": "instruct", "steps": 1, "init_from": {}, "sha256": "", "lineage": [], "settings": {}}
    (folder / "weights").mkdir()
    (folder / "weights/stage.json").write_text(json.dumps(record))
    return folder

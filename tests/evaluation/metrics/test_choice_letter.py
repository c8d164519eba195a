from __future__ import annotations

from typing import Any

import pytest

from lightning_mllm.evaluation.metrics import Asked, MmBenchScores, SeedBenchAccuracy
from lightning_mllm.evaluation.metrics.choice_letter import PASS, choices_of, chosen_letter
from tests.evaluation.metrics.published import published

PUBLISHED = published("mmbench")


def prompt(choices: list[str]) -> str:
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=False))
    return f"<image>\nWhat is it?\n{lines}\nAnswer with the option's letter from the given choices directly."


def metric_of(rows: list[dict[str, Any]]) -> MmBenchScores:
    metric = MmBenchScores()
    asked = [Asked(str(each["index"]), prompt(each["choices"]), each["category"]) for each in rows]
    metric.update([each["prediction"] for each in rows], [(each["answer"],) for each in rows], asked)
    metric.check_questions(asked)
    return metric


def test_letters_are_read_as_the_released_code_reads_them() -> None:
    for each in PUBLISHED["read"]:
        assert chosen_letter(each["answer"], PUBLISHED["choices"]) == each["letter"], each["answer"]


def test_choices_are_read_from_the_prompt() -> None:
    assert choices_of(prompt(["a cat", "a dog. Or two"])) == {"A": "a cat", "B": "a dog. Or two"}
    assert choices_of("Options: (a) a cat (b) a dog") == {}


def test_circular_evaluation_is_that_of_the_released_code() -> None:
    rows = PUBLISHED["rows"]
    values = metric_of(rows).compute()
    assert float(values["mmbench_circular"]) == pytest.approx(PUBLISHED["circular"], abs=1e-12)
    for kind, expected in PUBLISHED["kinds"].items():
        own = [each for each in rows if each["category"] == kind]
        assert float(metric_of(own).compute()["mmbench_circular"]) == pytest.approx(expected, abs=1e-12)


def test_one_wrong_pass_is_enough_and_the_first_alone_is_easier() -> None:
    choices = ["a", "b", "c"]
    rows = [
        {"index": q + k * PASS, "choices": choices, "category": "", "answer": "B", "prediction": said}
        for q, answers in enumerate(["BBB", "BBC", "CBB"])
        for k, said in enumerate(answers)
    ]
    values = {name: float(value) for name, value in metric_of(rows).compute().items()}
    assert values == pytest.approx({"mmbench_circular": 1 / 3, "mmbench_first": 2 / 3})


def test_what_cannot_be_scored_is_told_before() -> None:
    asked = [Asked(str(7 + k * PASS), prompt(["a", "b", "c"])) for k in range(3)]
    MmBenchScores().check_questions(asked)
    MmBenchScores().check_questions(asked[:1])
    with pytest.raises(ValueError, match=r"mmbench: found 2 passes of question 7, expected 3, .* a limit cuts"):
        MmBenchScores().check_questions(asked[:2])
    with pytest.raises(ValueError, match="mmbench: found the id 'q7', expected the index of a question, a number"):
        MmBenchScores().check_questions([Asked("q7")])
    for kind, name in ((MmBenchScores, "mmbench"), (SeedBenchAccuracy, "seed_bench")):
        for wrong in ("", "AB", "a"):
            with pytest.raises(ValueError, match=f"{name}: found the references .*, expected one letter of ABCDE"):
                kind().update(["A"], [(wrong,)])


def test_seed_takes_the_letter_alone() -> None:
    metric = SeedBenchAccuracy()
    metric.update([" A", "B", "B.", "b", "C. a dog"], [("A",), ("B",), ("B",), ("B",), ("C",)])
    assert metric.per_item() == [1, 1, 0, 0, 0]

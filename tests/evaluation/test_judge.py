from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.evaluation.judge import (
    JUDGES,
    prompts_of,
    read_contexts,
    read_grade,
    read_pair,
    read_rules,
    scores_of,
    scores_of_runs,
)


def row(id: str, kind: str = "", cluster: int = 0, **changes: Any) -> dict[str, Any]:
    known = {"prompt": "<image>\nWhat is x?", "answer": "{reference} is 3", "references": ["-1<AND>-5"]}
    return {"id": id, "question_type": kind, "cluster": cluster, "pictures": ["a/001.jpg"], **known, **changes}


@pytest.mark.parametrize(("text", "grade"), [("0.5", 0.5), ("1", 1), (" 0.0 |", 0), ("1.0\nall is right", 1)])
def test_a_grade_is_read(text: str, grade: float) -> None:
    assert read_grade(text) == (grade,)


@pytest.mark.parametrize("text", ["", "Grade: 0.5", "1.1", "2", "0,5", "nan", "-0.5", "0.5."])
def test_what_is_no_grade_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"at the beginning of the verdict, expected a grade from 0.0 to 1.0"):
        read_grade(text)


@pytest.mark.parametrize(
    ("text", "pair"), [("8 7.5\nBoth are good.", (8, 7.5)), ("9, 10", (9, 10)), ("\n1  2 \n", (1, 2))]
)
def test_a_pair_is_read(text: str, pair: tuple[float, float]) -> None:
    assert read_pair(text) == pair


@pytest.mark.parametrize("text", ["", "8", "8 7 6", "8/10 7/10", "Assistant 1: 8\n7", "0 5", "11 5", "8 seven"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="as the first line of the verdict, expected two grades from 1 to 10"):
        read_pair(text)


def test_mm_vet_is_asked_in_a_table_five_times() -> None:
    rules = read_rules("mm_vet")
    prompts = prompts_of("mm_vet", [row("v1_0")], rules, {})
    assert [each.id for each in prompts] == [f"v1_0#run{n}" for n in range(1, 6)]
    assert len({each.text for each in prompts}) == 1
    # What an answer holds is never taken for a field.
    assert prompts[0].text.splitlines()[-1] == "What is x? | -1 <AND> -5 | {reference} is 3 |"
    assert "<OR>" in rules.prompt and (rules.max_tokens, rules.temperature) == (8, 0)


def test_llava_bench_is_asked_with_the_context(tmp_path: Path) -> None:
    file = tmp_path / "context.jsonl"
    shown = {"image": "000000000001.jpg", "captions": ["A dog.", "A pet."]}
    boxes = {"instances": [{"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}]}
    lines = [{"image": "001.jpg", "caption": "A cat."}, {**shown, **boxes}]
    lines.append({"image": "2.jpg", "caption": "One\u2028two."})
    file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines) + "\n", encoding="utf-8")
    contexts = read_contexts(file)
    assert contexts["2.jpg"] == "One\u2028two."
    assert contexts["000000000001.jpg"] == "A dog.\nA pet.\n\ndog: [0.1, 0.2, 0.3, 0.4]"
    rules = read_rules("llava_bench")
    (prompt,) = prompts_of("llava_bench", [row("0")], rules, contexts)
    assert prompt.text.startswith("[Context]\nA cat.\n\n[Question]\nWhat is x?\n\n[Assistant 1]\n-1 <AND> -5\n")
    assert "[Assistant 2]\n{reference} is 3\n" in prompt.text
    (of_coco,) = prompts_of("llava_bench", [row("0", pictures=["COCO_val2014_000000000001.jpg"])], rules, contexts)
    assert "dog: [0.1" in of_coco.text
    with pytest.raises(ValueError, match=r"sample 0: found no context of \['b.jpg'\], expected one"):
        prompts_of("llava_bench", [row("0", pictures=["b.jpg"])], rules, contexts)
    with pytest.raises(ValueError, match="sample 0: found no reference, expected one to judge by"):
        prompts_of("llava_bench", [row("0", references=[])], rules, contexts)
    file.write_text('{"image": "001.jpg"}\n')
    with pytest.raises(ValueError, match=r"context.jsonl:1: found .*, expected an image with its caption"):
        read_contexts(file)


def test_grades_are_averaged_over_runs_then_over_questions_by_capability() -> None:
    rows = [row("a", "math+ocr", 0), row("b", "ocr", 1), row("c", "rec", 1), row("d", "rec", 2)]
    grades = {"a#run1": (1.0,), "a#run2": (0.5,), "b#run1": (0.0,), "b#run2": (0.0,), "c#run1": (0.6,)}
    scores = scores_of("mm_vet", rows, grades)
    found = {kind: (each["grade"]["value"], each["grade"]["samples"]) for kind, each in scores.items()}
    # As mm-vet_evaluator.py: a capability counts wherever it is needed, an integration where nothing else is.
    expected = {"all": (45, 3), "math": (75, 1), "ocr": (37.5, 2), "rec": (60, 1)}
    expected |= {"math+ocr": (75, 1), "ocr alone": (0, 1), "rec alone": (60, 1)}
    assert found == {kind: (pytest.approx(value), count) for kind, (value, count) in expected.items()}
    assert scores["all"]["grade"]["low"] < 45 < scores["all"]["grade"]["high"]
    assert scores_of_runs("mm_vet", rows, grades) == pytest.approx([100 * 1.6 / 3, 25])


def test_llava_bench_is_told_in_percent_of_the_reference() -> None:
    """As summarize_gpt_review.py: the ratio of means, not the mean of ratios."""
    rows = [row("0", "conv", 0), row("1", "conv", 1), row("2", "detail", 2)]
    scores = scores_of("llava_bench", rows, {"0#run1": (8.0, 4.0), "1#run1": (10.0, 8.0), "2#run1": (5.0, 6.0)})
    values = {kind: {name: found["value"] for name, found in each.items()} for kind, each in scores.items()}
    assert values == {
        "all": {
            "relative": pytest.approx(100 * 18 / 23),
            "reference": pytest.approx(230 / 3),
            "answer": pytest.approx(60),
        },
        "conv": {"relative": pytest.approx(100 * 12 / 18), "reference": pytest.approx(90), "answer": pytest.approx(60)},
        "detail": {"relative": pytest.approx(120), "reference": pytest.approx(50), "answer": pytest.approx(60)},
    }


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("prompt: x\n", "found prompt, expected the keys system, prompt, max_tokens, temperature, runs"),
        ("[]", "found no such keys, expected the keys"),
        ("a: b: c", "found no YAML .*, expected the rules"),
        ("{system: '', prompt: 5, max_tokens: 8, temperature: 0, runs: 1}", "found prompt 5, expected a text"),
        ("{system: '', prompt: x, max_tokens: '8', temperature: 0, runs: 1}", "found max_tokens '8', expected a whole"),
        (
            "{system: '', prompt: x, max_tokens: 8, temperature: hot, runs: 1}",
            "found temperature 'hot', expected a num",
        ),
        ("{system: '', prompt: '{question}', max_tokens: 8, temperature: 0, runs: 1}", r"found no \{reference\} in"),
        (
            "{system: '', prompt: '{question}{answer}{reference}{context}', max_tokens: 8, temperature: 0, runs: 0}",
            "found runs 0, max_tokens 8, expected at least 1 of each",
        ),
    ],
)
def test_rules_that_do_not_go(tmp_path: Path, content: str, rule: str) -> None:
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"own.yaml: {rule}"):
        read_rules("llava_bench", tmp_path / "own.yaml")
    assert set(JUDGES) == {"mm_vet", "llava_bench"}

"""`mllm judge` with a scripted judge: what it is asked, what is kept, what becomes of verdicts that cannot be read."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import data_modules.judging
from data_modules.synthesis.request import Answer, Refused, Request
from lightning_mllm.cli import main


class Scripted:
    """Says what is scripted for the sample of a request; at first something else where told to."""

    def __init__(self, verdicts: dict[str, str], at_first: dict[str, str] | None = None) -> None:
        self.verdicts, self.at_first, self.asked = verdicts, dict(at_first or {}), list[Request]()
        self._lock = threading.Lock()

    def ask(self, request: Request) -> Answer:
        with self._lock:
            self.asked.append(request)
            sample = request.id.partition("#")[0]
            text = self.at_first.pop(request.id, self.verdicts[sample])
        if text == "refuse":
            raise Refused("a filter refused it")
        return Answer(text=text, model="judge-1", prompt_tokens=9, completion_tokens=1)


def judge(tested: Path, monkeypatch: pytest.MonkeyPatch, backend: Scripted, name: str, to: Path, *options: str) -> Any:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(data_modules.judging, "endpoint", lambda *each: (given.append(each), backend)[1])
    run = [str(tested / "runs/toy"), f"--runs={tested}/runs"]
    main(["judge", *run, "--set", name, "--to", str(to), "--backend=openai", "--model=m", "--base-url=u", *options])
    assert given == [("m", "u", None, 120.0)]
    return json.loads((to / "judged.json").read_text())


def test_mm_vet_is_graded_and_a_stopped_command_goes_on(
    tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Scripted({"v1_0": "1.0", "v1_1": "0.5", "v1_2": "0.0"}, at_first={"v1_1#run2": "a half"})
    found = judge(tested, monkeypatch, backend, "mm_vet", tmp_path)
    assert {kind: each["grade"]["value"] for kind, each in found["scores"].items()} == pytest.approx(
        {"all": 50, "ocr": 75, "math": 50, "math+ocr": 50, "rec": 0, "ocr alone": 100, "rec alone": 0}
    )
    assert found["runs"] == pytest.approx([50] * 5) and found["not_judged"] == []
    assert (found["models"], found["verdicts"]) == (["judge-1"], 15)
    assert "MM-Vet" in (told := capsys.readouterr().out) and "15 of 15 verdicts" in told
    again = next(each for each in backend.asked if "repair" in each.id)
    assert "found 'a' at the beginning of the verdict, expected a grade" in again.messages[-1].text
    assert again.messages[-2].text == "a half"
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == 15 and lines[0] == {
        "id": "v1_0",
        "run": 1,
        "question_type": "ocr",
        "grades": [1.0],
        "text": "1.0",
        "model": "judge-1",
    }
    silent = Scripted({})
    assert judge(tested, monkeypatch, silent, "mm_vet", tmp_path) == found and silent.asked == []


def test_what_has_no_verdict_is_left_out_and_told(
    tested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    context = ("--context", str(tested / "context.jsonl"))
    backend = Scripted({"0": "8 4\nWorse.", "1": "refuse", "2": "good and better"})
    with pytest.raises(SystemExit) as left:
        judge(tested, monkeypatch, backend, "llava_bench", tmp_path, *context)
    told = capsys.readouterr().err
    assert left.value.code == 2 and "2 of 3 verdicts are missing: 1#run1: a filter refused it; --again asks" in told
    found = json.loads((tmp_path / "judged.json").read_text())
    assert found["scores"].keys() == {"all", "conv"} and found["scores"]["all"]["relative"]["value"] == 50
    assert [each["id"] for each in found["not_judged"]] == ["1#run1", "2#run1"]
    assert "expected two grades from 1 to 10" in found["not_judged"][1]["reason"]
    first = backend.asked[0]
    assert [each.role for each in first.messages] == ["system", "user"] and "A picture COCO" in first.messages[1].text
    with pytest.raises(SystemExit):
        judge(tested, monkeypatch, backend, "llava_bench", tmp_path, *context, "--model=other")
    assert "a folder holds one plan" in capsys.readouterr().err


def test_without_a_judge_its_prompts_are_written(
    tested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["judge", str(tested / "runs/toy/instruct/test_answers.jsonl"), "--set=mm_vet", f"--to={tmp_path}"])
    assert "(15 prompts; not judged: " in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert len(lines) == 15 and [each["role"] for each in lines[0]["messages"]] == ["user"]
    assert [each.name for each in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set=pope"], "--set: found 'pope', expected mm_vet or llava_bench"),
        (["--set=llava_bench"], "--context: found none, expected the file that says what the pictures show"),
        (["--set=mm_vet", "--backend=openai"], "--model: found none, expected the judge"),
    ],
)
def test_what_is_missing_is_named(
    tested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit):
        main(["judge", str(tested / "runs/toy/instruct"), *arguments, f"--to={tmp_path}/out"])
    assert sentence in capsys.readouterr().err

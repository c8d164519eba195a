"""`mllm synthesize` from files to records: by rules, by an endpoint, by batch files; told in one sentence if wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_modules.synthesis import command, journal
from data_modules.synthesis.backends.rule_based import RuleBased
from data_modules.synthesis.command import main
from data_modules.synthesis.kinds import PROMPTS
from data_modules.synthesis.request import Answer, Refused, Request, Retry, Stop
from lightning_mllm import cli

COUNT = 4
KEY = "canary-key-000111222333"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """COCO's files about four pictures, as arguments."""
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 20} for n in range(COUNT)]
    told = [("dog", "A dog sits on the grass."), ("cat", "A cat sleeps on a couch.")] * 2
    captions = [{"id": n, "image_id": n, "caption": told[n][1]} for n in range(COUNT)]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    boxes = [
        {"id": 10 * n + k, "image_id": n, "category_id": 1 + n % 2, "bbox": [20 * k, 2, 15, 15], "iscrowd": 0}
        for n in range(COUNT)
        for k in range(2)
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    whole = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(whole))
    (tmp_path / "images").mkdir()
    for n in range(COUNT):
        Image.new("RGB", (40, 20), (n, 0, 0)).save(tmp_path / f"images/{n}.png")
    captions_file, instances_file = str(tmp_path / "captions.json"), str(tmp_path / "instances.json")
    read = ["--captions", "coco", captions_file, "--instances", instances_file]
    return [*read, "--images", str(tmp_path / "images"), "--to", str(tmp_path / "out")]


class Endpoint:
    """Answers as rules do, after what `first` says of a request's first call."""

    first: Callable[[Request], str | Exception | None]

    def __init__(self, model: str, base_url: str | None, key_env: str | None, timeout: float) -> None:
        self.model = model
        self.calls: list[str] = []

    def ask(self, request: Request) -> Answer:
        found = type(self).first(request) if request.id not in self.calls else None
        self.calls.append(request.id)
        if isinstance(found, Exception):
            raise found
        answer = RuleBased().ask(request)
        return Answer(text=found or answer.text, model=self.model, prompt_tokens=3000, completion_tokens=700)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> type[Endpoint]:
    monkeypatch.setattr(command, "OpenAIEndpoint", Endpoint)
    monkeypatch.setattr(Endpoint, "first", staticmethod(lambda request: None), raising=False)
    return Endpoint


def records(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out/instructions.json").read_text())


def total(folder: Path) -> dict[str, int]:
    return json.loads((folder / "out/report.json").read_text())["total"]


def states(folder: Path) -> dict[str, int]:
    with journal.read(folder / "out") as book:
        return book.counts()


def test_rules_write_records_and_a_second_run_changes_nothing(tmp_path: Path, files: list[str]) -> None:
    asked = [*files, "--backend", "rules", "--kinds", "conversation,detail=3", "--prefix", "coco/"]
    main(asked)
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    names = {"journal.sqlite", "instructions.json", "quarantine.jsonl", "report.html", "report.json", "README.md"}
    assert written.keys() == names | {".lock"}
    found = records(tmp_path)
    assert len(found) == COUNT + 3 and found[0]["image"] == "coco/0.png"
    assert found[0]["conversations"][0]["value"].startswith("<image>\n")
    main(asked)
    main(["report", str(tmp_path / "out")])
    again = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name for name in names - {"journal.sqlite"} if again[name] != written[name]} == set()


def test_more_may_be_asked_of_a_folder_later(tmp_path: Path, files: list[str]) -> None:
    asked = [*files, "--backend", "rules", "--kinds"]
    main([*asked, "detail=2"])
    first = records(tmp_path)
    main([*asked, "conversation,detail=4"])
    assert len(records(tmp_path)) == COUNT + 4 and {each["id"] for each in first} < {
        each["id"] for each in records(tmp_path)
    }
    with pytest.raises(ValueError, match="found no such request now, expected that in the journal"):
        main([*asked, "detail=1"])


def test_a_kind_of_ones_own_is_found_from_any_folder(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "a=1"
    own.mkdir()
    (own / "mine.yaml").write_text((PROMPTS / "brief.yaml").read_text())
    monkeypatch.chdir(own)
    main([*files, "--backend", "rules", "--kinds", "mine.yaml=3,dense", "--limit", "3"])
    monkeypatch.chdir(tmp_path)
    main(["report", str(tmp_path / "out")])
    assert len(records(tmp_path)) == 6
    card = (tmp_path / "out/README.md").read_text()
    assert "Pictures taken: 3." in card and "rules wrote them" in card and "| dense | captions and boxes | 3 |" in card


def test_calls_that_were_lost_are_in_the_report(tmp_path: Path, files: list[str], endpoint: type[Endpoint]) -> None:
    endpoint.first = staticmethod(lambda request: Retry("cut", paid=True) if request.id == "1/detail" else None)
    main([*files, "--model", "toy", "--kinds", "detail", "--prices", "1,1"])
    with journal.read(tmp_path / "out") as book:
        spent, lost = book.spent, book.lost
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert found["tokens"] == {"prompt": spent.prompt, "completion": spent.completion, "lost": lost.total}
    assert lost.completion > 0 and found["money"] == pytest.approx(spent.total / 1e6)
    assert "of them for calls without an answer" in (tmp_path / "out/report.html").read_text()


def test_a_caption_with_half_a_character_is_named(tmp_path: Path, files: list[str]) -> None:
    text = (tmp_path / "captions.json").read_text()
    (tmp_path / "captions.json").write_text(text.replace("A cat sleeps", "A cat \\ud83d sleeps", 1))
    with pytest.raises(ValueError, match=r"1/detail: found half a character in what is known of 1\.png"):
        main([*files, "--backend", "rules", "--kinds", "detail"])


def test_a_dry_run_shows_a_whole_request_of_each_kind(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["--kinds", "conversation=2,detail,dense=1", "--dry-run", "--prices", "2.5,10"]
    main([*files, "--model", "gpt-4o", *kinds])
    told = capsys.readouterr().out
    assert told.startswith("7 calls, about ") and "in money; budget: none" in told
    for each in ("conversation: 2 requests", "detail: 4 requests", "dense: 1 requests", "--- system", "/images/"):
        assert each in told
    assert "A dog sits on the grass.\n\ndog: [0.000, 0.100, 0.375, 0.850]" in told
    assert not (tmp_path / "out").exists()


def test_a_bad_answer_is_repaired_and_a_stop_is_told_and_gone_on_from(
    tmp_path: Path, files: list[str], endpoint: type[Endpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    def first(request: Request) -> str | Exception | None:
        if request.id == "3/detail":
            return Stop("status 429: no quota")
        return "The caption says that a dog sits on the grass." if request.id == "1/detail" else None

    endpoint.first = staticmethod(first)
    asked = [
        *files,
        "--model",
        "toy",
        "--kinds",
        "detail",
        "--concurrency",
        "1",
        "--base-url",
        "http://host.example/v1",
    ]
    with pytest.raises(ValueError, match="synthesize: status 429: no quota; the same command goes on from here"):
        main(asked)
    assert {each["id"] for each in records(tmp_path)} == {"0/detail", "2/detail"} and total(tmp_path)["open"] == 2
    endpoint.first = staticmethod(lambda request: None)
    main(asked)
    assert total(tmp_path) == {
        "requests": 4, "accepted": 3, "repaired": 1, "rejected": 0, "refused": 0, "open": 0
    }  # fmt: skip
    provenance = {each["id"]: each["provenance"] for each in records(tmp_path)}
    assert provenance["1/detail"]["repairs"] == 1 and provenance["0/detail"]["model"] == "toy"
    assert "toy at host.example" in (tmp_path / "out/README.md").read_text()
    assert "spent before: 11,100 tokens" in capsys.readouterr().out


def test_a_budget_ends_the_run_and_a_larger_one_goes_on(
    tmp_path: Path, files: list[str], endpoint: type[Endpoint]
) -> None:
    asked = [*files, "--model", "toy", "--kinds", "detail", "--prices", "1,1"]
    with pytest.raises(ValueError, match=r"the budget is reached: spent .* tokens \(0\.0074\), 2 calls are left"):
        main([*asked, "--budget-money", "0.0085"])
    assert states(tmp_path) == {"accepted": 2, "pending": 2} and len(records(tmp_path)) == 2
    main([*asked, "--budget-money", "0.1"])
    assert states(tmp_path) == {"accepted": COUNT}


def test_another_plan_in_the_folder_is_refused(tmp_path: Path, files: list[str], endpoint: type[Endpoint]) -> None:
    asked = [*files, "--kinds", "detail", "--model", "toy"]
    main(asked)
    with pytest.raises(ValueError, match="model: found 'toy' in the journal and 'gpt' now"):
        main([*asked, "--model", "gpt"])
    with pytest.raises(ValueError, match="seed: found '0' in the journal and '1' now"):
        main([*asked, "--seed", "1"])
    text = (tmp_path / "captions.json").read_text()
    (tmp_path / "captions.json").write_text(text + "\n")
    for again in (asked, ["report", str(tmp_path / "out")]):
        with pytest.raises(ValueError, match=r"captions: found 'captions.json [0-9a-f]{16}' in the journal and"):
            main(again)
    (tmp_path / "captions.json").write_text(text)
    main(["report", str(tmp_path / "out")])


def test_refused_requests_are_asked_again_on_demand(tmp_path: Path, files: list[str], endpoint: type[Endpoint]) -> None:
    endpoint.first = staticmethod(lambda request: Refused("the model refused"))
    asked = [*files, "--model", "toy", "--kinds", "detail"]
    main(asked)
    assert states(tmp_path) == {"refused": COUNT}
    (line, *_) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["sentence"] == "the model refused"
    endpoint.first = staticmethod(lambda request: None)
    main(asked)
    assert states(tmp_path) == {"refused": COUNT}
    main([*asked, "--again"])
    assert states(tmp_path) == {"accepted": COUNT}


def test_batch_files_are_written_and_results_read(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["batch", "write", *files, "--kinds", "detail", "--model", "gpt-4o"]
    main(asked)
    path = tmp_path / "out/batches/requests-1-0001.jsonl"
    assert str(path) in capsys.readouterr().out
    lines = [json.loads(each) for each in path.read_text().splitlines()]
    assert [each["custom_id"] for each in lines] == [f"{n}/detail" for n in range(COUNT)]
    assert lines[0]["body"]["max_completion_tokens"] > 0
    main(asked)
    assert "4 calls are in batch files already; --again writes them anew" in capsys.readouterr().out
    results = tmp_path / "results.jsonl"
    results.write_text("".join(f"{json.dumps(answered(line, n))}\n" for n, line in enumerate(lines)))
    main(["batch", "read", str(tmp_path / "out"), str(results)])
    told = capsys.readouterr().out
    assert "1 rejected, 3 accepted" in told or "3 accepted, 1 rejected" in told
    assert "1 calls are to be sent: mllm synthesize batch write puts them into files" in told
    assert len(records(tmp_path)) == 3
    main(asked)
    assert capsys.readouterr().out.startswith("1 calls, about ")
    (again,) = (tmp_path / "out/batches/requests-2-0001.jsonl").read_text().splitlines()
    assert json.loads(again)["custom_id"] == "1/detail#repair1"
    results.write_text(f"{json.dumps(answered(json.loads(again), 5))}\n")
    main(["batch", "read", str(tmp_path / "out"), str(results)])
    assert total(tmp_path)["repaired"] == 1 and len(records(tmp_path)) == COUNT


def answered(line: dict[str, Any], number: int) -> dict[str, Any]:
    """A line of results; the second answer is a bad one."""
    said = "A dog." if number == 1 else (
        "The picture shows two animals next to each other. One is on the left, and the other one is on the right. "
        f"They look calm and seem to rest. It is a quiet scene {number}, with nothing else that stands out around them."
    )  # fmt: skip
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 50, "completion_tokens": 20}
    body = {"model": "gpt-4o-1", "choices": [choice], "usage": usage}
    return {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


def test_a_picture_that_cannot_be_sent_leaves_the_others_in_the_batch(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "images/odd.bmp")
    images, to = str(tmp_path / "images"), str(tmp_path / "out")
    main(["batch", "write", "--images", images, "--to", to, "--kinds", "dense", "--model", "gpt-4o"])
    assert "1 requests are refused; mllm synthesize report tells why" in capsys.readouterr().out
    assert states(tmp_path) == {"written": COUNT, "refused": 1}
    assert len((tmp_path / "out/batches/requests-1-0001.jsonl").read_text().splitlines()) == COUNT
    main(["report", to])
    assert "odd.bmp: found bytes that begin with b'BM" in (tmp_path / "out/quarantine.jsonl").read_text()


def test_a_batch_stays_in_its_budget(tmp_path: Path, files: list[str]) -> None:
    asked = ["batch", "write", *files, "--kinds", "detail", "--model", "gpt-4o", "--budget-tokens", "9000"]
    with pytest.raises(ValueError, match=r"batch write: the budget leaves out \d calls"):
        main(asked)
    assert 0 < states(tmp_path)["written"] < COUNT


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--modle", "x"], "synthesize: found an unknown argument --modle; the nearest is --model"),
        (["--model", ""], "synthesize: found no --model, which --backend openai asks"),
        (["--model", "m"], "--key-env: found none, expected the environment variable"),
        (["--model", "m", "--key-env", KEY], "--key-env: found no such environment variable"),
        (["--backend", "rules", "--kinds", "poem"], "kind: found 'poem', expected"),
        (["--backend", "rules", "--kinds", "detail=many"], "--kinds: found 'detail=many', expected NAME or NAME=COUNT"),
        (["--backend", "rules", "--kinds", "detail,detail=2"], "--kinds: found 'detail' twice"),
        (["--backend", "rules", "--kinds", "detail=9"], "detail: 9 are wanted, expected at most the 4 pictures"),
        (["--backend", "rules", "--limit", "-1"], "--limit: found -1, expected at least 1"),
        (["--backend", "rules", "--image-tokens", "0"], "--image-tokens: found 0, expected at least 1"),
        (
            ["--backend", "rules", "--captions", "poems", "x.json"],
            "--captions: found 'poems', expected coco or a class",
        ),
        (["--backend", "rules", "--concurrency", "0"], "--concurrency: found 0, expected at least 1"),
        (["--backend", "rules", "--longest-wait", "-1"], "--longest-wait: found -1.0, expected at least 0"),
        (
            ["--backend", "rules", "--budget-money", "nan", "--prices", "1,1"],
            "--budget-money: found nan, expected more",
        ),
        (["--backend", "rules", "--budget-money", "3"], "--budget-money: found no --prices"),
        (["--backend", "rules", "--prices", "3"], "--prices: found '3', expected two numbers"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_writes_nothing(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    pytest.importorskip("openai")
    with pytest.raises(SystemExit) as left:
        cli.main(["synthesize", *files, *arguments])
    said = capsys.readouterr().err
    assert left.value.code == 2 and told in said and said.count("\n") == 1 and KEY not in said
    assert not (tmp_path / "out").exists()


def test_other_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="synthesize: found 'batch send', expected batch write or batch read"):
        main(["batch", "send"])
    with pytest.raises(ValueError, match="synthesize report: the following arguments are required: folder"):
        main(["report"])

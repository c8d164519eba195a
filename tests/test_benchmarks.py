"""Benchmarks run in small, those of a GPU too; no time is looked at."""

from __future__ import annotations

import json
import math
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_mllm.cli import main
from lightning_mllm.commands.bench import benchmarks
from lightning_mllm.training.memory import _apart

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(benchmarks()) and "training_speed" in benchmarks()
    assert all(len(line.split()) > 3 for line in lines)


def test_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "training_sped"])
    assert "the nearest is 'training_speed'" in capsys.readouterr().err


def test_training_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both loops train the same: from the same weights, on the same samples, their losses agree."""
    given = ["--net", "tiny", "--batch", "3", "--steps", "2", "--warmup", "1", "--to", str(tmp_path)]
    main(["bench", "training_speed", *given, "--peers", "HF Trainer,TRL SFTTrainer", "--settings", "ours padded"])
    said = capsys.readouterr().out
    assert "ours padded" in said
    found = json.loads((tmp_path / "training_speed.json").read_text(encoding="utf-8"))
    assert found.keys() == {"machine", "load_after", "workload", "contenders"}
    theirs, trl, ours = found["contenders"]
    left_out = "TRL SFTTrainer is left out: it needs trl, which is not installed"
    assert trl["agrees"] if find_spec("trl") else left_out in said.splitlines()
    assert [theirs["name"], ours["name"]] == ["HF Trainer", "ours padded"]
    for each in (theirs, ours):
        assert len(each["losses"]) == 3 and len(each["cpu_s"]) == len(each["wall_s"]) == 2
        assert min(each["cpu_s"]) > 0 and each["agrees"]
    # From one step to the next they differ by more than the contenders do.
    assert theirs["losses"][0] != pytest.approx(theirs["losses"][1], rel=1e-4)
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5) and ours["loss_difference"] < 1e-5
    assert found["workload"]["padded_tokens"] > found["workload"]["tokens"] > found["workload"]["supervised"] > 0
    assert (tmp_path / "training_speed.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_texts_of_a_processor_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TRL's collator is given, as tokens and pixels."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contest.hf_llava import Rows  # pyright: ignore[reportMissingImports]
    from contest.hf_processor import processor_of, rows_of  # pyright: ignore[reportMissingImports]
    from contest.workload import Workload  # pyright: ignore[reportMissingImports]

    workload = Workload("tiny", "align", [(0, 3), (4, 2)], batch=2, steps=1, warmup=0, images=2)
    processor, rows = processor_of(workload), Rows(workload)
    for number, text in enumerate(rows_of(workload)):
        one = processor(images=text["images"], text=f"{text['prompt']} {text['completion']}", return_tensors="pt")
        assert one["input_ids"][0].tolist() == rows[number]["input_ids"].tolist()
        torch.testing.assert_close(one["pixel_values"], rows[number]["pixel_values"], rtol=0, atol=1e-6)
        answer = processor(text=text["completion"])["input_ids"][0]
        assert answer == [token for token in rows[number]["labels"].tolist() if token >= 0]
    assert number == 3


def test_samples_by_length_are_those_of_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps at even distances from the longest to the shortest of fifty, whose mean is that of all."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contest.hf_trainer import at_even_distances  # pyright: ignore[reportMissingImports]
    from contest.workload import Workload  # pyright: ignore[reportMissingImports]

    workload = Workload("tiny", "align", [(0, 3)], batch=2, steps=5, warmup=1)
    falling = [samples for step in range(50, 0, -1) for samples in (step, step)]
    steps = [25, 45, 35, 25, 15, 5, 25]
    assert at_even_distances(falling, workload) == [sample for step in steps for sample in (step, step)]


def test_training_scaling(tmp_path: Path) -> None:
    """Of one rank and of two."""
    given = ["--net", "tiny", "--steps", "1", "--series", "ranks", "--to", str(tmp_path)]
    main(["bench", "training_scaling", *given])
    found = json.loads((tmp_path / "training_scaling.json").read_text(encoding="utf-8"))
    assert [each["value"] for each in found["series"]["ranks"]] == [1, 2]
    assert all(each["cpu_s"] > 0 and each["tokens"] == 8 * (1 + 4 + 80) for each in found["series"]["ranks"])
    assert (tmp_path / "training_scaling.svg").is_file()


def test_loop_overhead(tmp_path: Path) -> None:
    main(["bench", "loop_overhead", "--steps", "3", "--to", str(tmp_path)])
    found = json.loads((tmp_path / "loop_overhead.json").read_text(encoding="utf-8"))
    assert found["loop_ms"] > 0 and found["bare_ms"] > 0 and found["tensors"] > 4
    assert found["overhead_ms"] == found["loop_ms"] - found["bare_ms"]
    assert abs(found["guards_ms"]) < found["loop_ms"]
    assert found["share"] == found["overhead_ms"] / found["share_of_ms"]


def test_llava_on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages and contenders, and FLOPs by hand."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = runpy.run_path(str(BENCHMARKS / "llava_on_gpu.py"))
    found = script["main"](["--tiny", "--batch", "2", "--steps", "1", "--to", str(tmp_path)])
    rows = {(each["stage"], each["layers"], each["name"]): each for each in found["rows"]}
    stages = [("align", 2), ("instruct_lora", 2), ("instruct", 1), ("instruct", 2), ("instruct, scaled", 2)]
    for stage in stages:
        for name in ("ours", "HF Trainer"):
            numbers = [value for value in rows[*stage, name].values() if isinstance(value, float)]
            assert len(numbers) >= 4 and all(math.isfinite(value) and value > 0 for value in numbers)
    assert json.loads((tmp_path / "llava_on_gpu.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))

    work = script["Workload"]("tiny", "instruct", [(3, 2)], batch=2, steps=1, warmup=0, random=True)
    tokens, supervised, layer = 2 * (1 + 4 + 5), 2 * 2, 4 * 32 * 32 + 3 * 32 * 64
    language = 2 * 2 * layer * tokens + 2 * 32 * 2 * (2 * 10**2) + 2 * 32 * 300 * supervised
    connector = 2 * (32 * 32 + 32 * 32) * 2 * 4
    tower = 2 * 2 * (2 * 12 * 32**2 * 5 + 4 * 32 * 5**2)
    assert script["useful_flops"](work) == 3 * language + 3 * connector + tower


def played(losses: list[float], tokens: int | None = None, before: Callable[[int], object] = bool) -> ModuleType:
    """A runner of the contest that trains nothing and has these losses; does something before a step."""

    def run(workload: object, settings: object, folder: object, gate: Any) -> None:
        for number, loss in enumerate([None, *losses]):
            before(number)
            gate.passed(loss, tokens)

    module = ModuleType("played")
    vars(module)["run"] = run
    return module


def killed(number: int) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def raced(
    monkeypatch: pytest.MonkeyPatch, folder: Path, runners: Mapping[str, ModuleType], **settings: Any
) -> list[dict[str, Any]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contest.turns import Contender, race  # pyright: ignore[reportMissingImports]
    from contest.workload import Workload  # pyright: ignore[reportMissingImports]

    for name, module in runners.items():
        monkeypatch.setitem(sys.modules, f"contest.{name}", module)
    contenders = [Contender(name, name, **settings.get(name, {})) for name in (*runners, "lost")]
    workload = Workload("tiny", "instruct", [(3, 2)], batch=2, steps=2, warmup=1)
    return race(workload, contenders, folder, 1)


def test_a_contender_that_cannot_train_is_left_out_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever it is, the first one too; and whenever it ends."""

    def raises(error: BaseException, at: int) -> Callable[[int], None]:
        def before(number: int) -> None:
            if number == at:
                raise error

        return before

    losses, no = [2.0, 2.0, 2.0], ModuleNotFoundError("could not import 'SFTTrainer'")
    no.__cause__ = ModuleNotFoundError("No module named 'trl'", name="trl")
    runners = {
        "absent": played(losses, before=raises(no, 0)),
        "refused": played(losses, before=raises(ValueError("found bf16,\n  expected fp32"), 0)),
        "broken": played(losses, before=raises(ImportError("accelerate>=1.1 is required"), 0)),
        "first": played(losses),
        "killed": played(losses, before=killed),
        "late": played(losses, before=raises(MemoryError(), 2)),
        "gone": played(losses, before=lambda number: os._exit(3)),
        "second": played([2.0, 2.0, 2.00001]),
    }
    found = {each["name"]: each for each in raced(monkeypatch, tmp_path, runners)}
    why = {name: each.get("absent") for name, each in found.items()}
    assert why == {
        "absent": "it needs trl, which is not installed",
        "refused": "it was refused: found bf16, expected fp32",
        "broken": "ImportError: accelerate>=1.1 is required",
        "first": None,
        "killed": "its process was ended by SIGKILL, expected a step",
        "late": "MemoryError",
        "gone": "its process ended with exit code 3, expected a step",
        "second": None,
        "lost": "it needs contest.lost, which is not installed",
    }
    assert "MemoryError" in found["late"]["log"] and len(found["first"]["cpu_s"]) == 2
    assert [found[name]["beside"] for name in ("first", "second")] == ["first", "first"]
    assert found["second"]["loss_difference"] == pytest.approx(5e-6) and found["second"]["agrees"]


def test_no_contender_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        raced(monkeypatch, tmp_path, {"one": played([], before=lambda number: 1 / 0)})
    assert str(caught.value).splitlines() == [
        "one is left out: ZeroDivisionError: division by zero",
        "lost is left out: it needs contest.lost, which is not installed",
    ]


def test_losses_that_differ_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of another order, whose time is that of as many tokens."""
    own = {"own_order": True}
    runners = {
        "own": played([9.0, 9.0, 9.0], tokens=40),
        "first": played([2.0, 2.0, 2.0]),
        "differs": played([2.0, 2.0, 2.0001]),
        "bf16": played([2.0, 2.0, 2.0001]),
    }
    rows = raced(monkeypatch, tmp_path, runners, own=own, bf16={"precision": "bf16"})
    found = {each["name"]: each for each in rows}
    assert [found[name]["agrees"] for name in runners] == [True, True, False, True]
    assert {found[name]["beside"] for name in runners} == {"first"} and found["own"]["loss_difference"] is None
    # Two steps of 40 tokens; those of the workload have 2 * (1 + 4 + 5).
    assert found["own"]["median_cpu_s"] == pytest.approx(sum(found["own"]["cpu_s"]) * 20 / 80)


def test_lengths_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contest.workload import read_lengths  # pyright: ignore[reportMissingImports]

    file = tmp_path / "lengths.txt"
    file.write_text("12 40\n0 3\n", encoding="utf-8")
    assert read_lengths("align", file) == [(12, 40), (0, 3)]
    file.write_text("12 40\n0 0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lengths.txt, line 2: found '0 0', expected"):
        read_lengths("align", file)


def test_the_plan_on_a_gpu() -> None:
    """The oracle, a step, its useful FLOPs by hand, and a checkpoint that is read back."""
    script = runpy.run_path(str(BENCHMARKS / "plan_on_gpu.py"))
    found: dict[str, Any] = _apart(lambda: script["main"](["--tiny", "--rows", "2", "--steps", "1"]))
    assert found["oracle"] > 0 and found["peak"] is None
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert all(math.isfinite(value) and value > 0 for value in numbers)
    # Rows of 256 tokens, four slots; width 32, two layers of 4 x 32 x 32 + 3 x 32 x 64; 272 words, all but the slots'.
    assert found["checkpoint"]["bytes"] == 4 * sum(
        (2 * 272 * 32, 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32), 32, 2 * (32 * 32 + 32))
    )
    tokens, supervised = 2 * 256, 2 * (256 - 1 - 4)
    layers, attention = 2 * tokens * 2 * (4 * 32 * 32 + 3 * 32 * 64), 2 * tokens * 2 * 256 * 32
    head, connector = 2 * supervised * 272 * 32, 2 * 2 * 4 * 2 * 32 * 32
    tower = 2 * 2 * 4 * 2 * (4 * 32 * 32 + 2 * 32 * 128)
    assert found["flops"] == 3 * (layers + attention + head + connector) + tower

"""Benchmarks run in small, those of a GPU too; no time is looked at."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest

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
    main(["bench", "training_speed", *given, "--peers", "HF Trainer", "--settings", "ours padded"])
    assert "ours padded" in capsys.readouterr().out
    found = json.loads((tmp_path / "training_speed.json").read_text(encoding="utf-8"))
    assert found.keys() == {"machine", "load_after", "workload", "contenders"}
    theirs, ours = found["contenders"]
    assert [theirs["name"], ours["name"]] == ["HF Trainer", "ours padded"]
    for each in (theirs, ours):
        assert len(each["losses"]) == 3 and len(each["cpu_s"]) == len(each["wall_s"]) == 2
        assert min(each["cpu_s"]) > 0 and each["agrees"]
    # From one step to the next they differ by more than the contenders do.
    assert theirs["losses"][0] != pytest.approx(theirs["losses"][1], rel=1e-4)
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5) and ours["loss_difference"] < 1e-5
    assert found["workload"]["padded_tokens"] > found["workload"]["tokens"] > found["workload"]["supervised"] > 0
    assert (tmp_path / "training_speed.svg").read_text(encoding="utf-8").startswith("<?xml")


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


def test_losses_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from contest.turns import Contender, _compared  # pyright: ignore[reportMissingImports]

    one = {"median_cpu_s": 1.0, "median_wall_s": 1.0, "cpu_s": [1.0], "own": 1, "peak": 2}
    first, other = {**one, "losses": [2.0, 2.0]}, {**one, "losses": [2.0, 2.0001]}
    assert not _compared(dict(other), first, Contender("a", "ours"))["agrees"]
    assert _compared(dict(other), first, Contender("a", "ours", precision="bf16"))["agrees"]


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

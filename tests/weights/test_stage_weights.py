"""The hand-over: later stages over earlier ones, mixes, adapters, and no silent change of a source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_mllm.weights.files import write_tensors
from lightning_mllm.weights.keymap import KeyMap
from lightning_mllm.weights.lineage import InitSource
from lightning_mllm.weights.stage_weights import Lineage, config_hash, initial_tensors, write_stage


def stage(runs: Path, name: str, tensors: dict[str, Tensor], init_from: dict[str, float] | None = None, **more) -> Path:
    settings = {"config": {"lr": 1e-3, "name": name}, "seconds": 1.5}
    return write_stage(
        runs / name, tensors, stage=Path(name).name, settings=settings, init_from=init_from or {}, steps=3, **more
    )


def start(runs: Path, **init_from: float):
    return initial_tensors(init_from, runs, {})


def test_a_later_stage_wins_and_untouched_tensors_pass_through(tmp_path: Path) -> None:
    stage(tmp_path, "align", {"connector.weight": torch.ones(2), "connector.bias": torch.zeros(2)})
    folder = stage(
        tmp_path, "instruct", {"connector.weight": torch.full((2,), 5.0), "language.w": torch.ones(1)}, {"align": 1.0}
    )
    found = start(tmp_path, instruct=1.0)
    assert set(found) == {"connector.weight", "connector.bias", "language.w"} and len(found) == 3
    assert found["connector.weight"].tolist() == [5, 5] and found["connector.bias"].tolist() == [0, 0]
    record = json.loads((folder / "stage.json").read_text())
    assert record["stage"] == "instruct" and record["steps"] == 3 and record["init_from"] == {"align": 1.0}
    assert record["names"] == ["connector.weight", "language.w"]
    assert [each["source"] for each in record["lineage"]] == ["align"]
    assert record["lineage"][0]["sha256"] == json.loads((tmp_path / "align/weights/stage.json").read_text())["sha256"]
    assert record["config_hash"] == config_hash({"name": "instruct", "lr": 1e-3})
    assert record["settings"]["seconds"] == 1.5


def test_what_a_killed_run_left_behind_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "align" / "weights" / ".model.safetensors.0f.writing"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    folder = stage(tmp_path, "align", {"a": torch.ones(1)})
    assert sorted(each.name for each in folder.iterdir()) == ["model.safetensors", "stage.json"]


def test_names_below_the_runs_beside_the_stage_and_as_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    stage(runs, "x/llava/align", {"a": torch.ones(1)})
    stage(runs, "x/llava/instruct", {"b": torch.ones(1)}, {"x/llava/align": 1.0})
    lineage = Lineage.read({"x/llava/instruct": 1.0}, runs)
    assert [each.stage for each in lineage.sources] == ["align", "instruct"]
    # Moved as a whole, and read from elsewhere.
    moved = tmp_path / "elsewhere"
    runs.rename(moved)
    monkeypatch.chdir(tmp_path)
    assert set(start(Path("runs"), **{str(moved / "x/llava/instruct"): 1.0})) == {"a", "b"}


def test_a_neighbour_of_the_same_name_does_not_stand_in_for_an_ancestor_that_is_gone(tmp_path: Path) -> None:
    stage(tmp_path, "x/align", {"w": torch.ones(1)})
    stage(tmp_path, "y/instruct", {"v": torch.ones(1)}, {"x/align": 1.0})
    stage(tmp_path, "y/align", {"w": torch.zeros(1)})
    assert start(tmp_path, **{"y/instruct": 1.0})["w"].item() == 1
    kept = tmp_path / "kept"
    (tmp_path / "x/align").rename(kept)
    with pytest.raises(
        ValueError, match=r"found no 'x/align' \(stage 'align'\), whose weights .*y/instruct starts from"
    ):
        start(tmp_path, **{"y/instruct": 1.0})
    with pytest.raises(ValueError, match="found no 'x/align', whose weights"):
        InitSource.find("x/align", tmp_path, tmp_path / "y/instruct")
    # With its run renamed, the right one is beside what starts from it.
    shutil.rmtree(tmp_path / "y/align")
    kept.rename(tmp_path / "y/align")
    assert start(tmp_path, **{"y/instruct": 1.0})["w"].item() == 1


def test_a_diamond_is_read_once(tmp_path: Path) -> None:
    stage(tmp_path, "base", {"w": torch.zeros(1)})
    stage(tmp_path, "left", {"w": torch.ones(1)}, {"base": 1.0})
    stage(tmp_path, "right", {"w": torch.full((1,), 3.0)}, {"base": 1.0})
    lineage = Lineage.read({"left": 0.5, "right": 0.5}, tmp_path)
    assert [each.source for each in lineage.sources] == ["base", "left", "right"]


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_a_mix_of_stages(tmp_path: Path, beta: float) -> None:
    real, text = torch.randn(5), torch.randn(5).bfloat16()
    stage(tmp_path, "real", {"w": real})
    stage(tmp_path, "text", {"w": text})
    mixed = start(tmp_path, real=beta, text=1 - beta)["w"]
    torch.testing.assert_close(mixed.float(), beta * real + (1 - beta) * text.float(), rtol=0, atol=1e-6)
    assert mixed.dtype == (torch.bfloat16 if beta == 0 else torch.float32)
    if beta in (0, 1):
        assert torch.equal(mixed, text if beta == 0 else real)


def test_a_mix_keeps_what_a_stage_made_of_it(tmp_path: Path) -> None:
    stage(tmp_path, "one", {"w": torch.zeros(1), "v": torch.zeros(1)})
    stage(tmp_path, "two", {"w": torch.ones(1), "v": torch.ones(1)})
    stage(tmp_path, "next", {"v": torch.full((1,), 7.0)}, {"one": 0.5, "two": 0.5})
    found = start(tmp_path, next=1.0)
    assert found["w"].item() == 0.5 and found["v"].item() == 7


def test_wrong_mixes_are_refused(tmp_path: Path) -> None:
    stage(tmp_path, "one", {"w": torch.zeros(1)})
    stage(tmp_path, "more", {"w": torch.zeros(1), "v": torch.zeros(1)})
    stage(tmp_path, "wide", {"w": torch.zeros(2)})
    for weights in ({"one": 0.5}, {"one": 0.7, "wide": 0.7}, {"one": 1.5, "wide": -0.5}):
        with pytest.raises(ValueError, match=r"init_from: found the weights .* that sum to 1"):
            start(tmp_path, **weights)
    with pytest.raises(ValueError, match=r"differ in 1 tensors \('v' is only in 'more'\)"):
        start(tmp_path, one=0.5, more=0.5)
    with pytest.raises(ValueError, match=r"'w' has shape \(2,\) in 'wide', expected \(1,\) as in 'one'"):
        start(tmp_path, one=0.5, wide=0.5)["w"]


def test_missing_and_unfinished_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"init_from: found no 'align' in"):
        start(tmp_path, align=1.0)
    (tmp_path / "align/checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"'align' is .*, expected a finished stage"):
        start(tmp_path, align=1.0)
    with pytest.raises(ValueError, match="found no 'gone'"):
        stage(tmp_path, "instruct", {"w": torch.ones(1)}, {"gone": 1.0})
    assert not (tmp_path / "instruct/weights/stage.json").exists()


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    stage(tmp_path, "align", {"w": torch.ones(4)})
    stage(tmp_path, "instruct", {"v": torch.ones(4)}, {"align": 1.0})
    file = tmp_path / "instruct/weights/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="changed or were cut"):
        start(tmp_path, instruct=1.0)
    content[-1] ^= 1
    file.write_bytes(content)
    stage(tmp_path, "align", {"w": torch.zeros(4)})
    with pytest.raises(ValueError, match="was trained from 'align' as it was then"):
        start(tmp_path, instruct=1.0)


def test_a_record_in_another_format_is_refused(tmp_path: Path) -> None:
    stage(tmp_path, "align", {"w": torch.ones(1)})
    record = tmp_path / "align/weights/stage.json"
    for content in ("{", "[]", '{"format": 99}'):
        record.write_text(content)
        with pytest.raises(ValueError, match=r"stage.json: found"):
            start(tmp_path, align=1.0)


def test_a_stage_that_descends_from_itself_is_refused(tmp_path: Path) -> None:
    stage(tmp_path, "a", {"w": torch.ones(1)})
    record = tmp_path / "a/weights/stage.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "init_from": {"a": 1.0}}))
    with pytest.raises(ValueError, match="descends from itself"):
        start(tmp_path, a=1.0)


Q = "language.model.layers.0.q_proj"


def adapters(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 4, generator=generator), torch.randn(3, 2, generator=generator)
    return {f"{Q}.lora_A.default.weight": a, f"{Q}.lora_B.default.weight": b}


def delta(seed: int, scale: float) -> Tensor:
    a, b = adapters(seed).values()
    return scale * (b @ a)


def test_adapters_are_kept_for_a_net_with_adapters_and_folded_for_one_without(tmp_path: Path) -> None:
    stage(tmp_path, "lora", {**adapters(1), "connector.w": torch.ones(1)}, lora_scale=2.0)
    found = start(tmp_path, lora=1.0)
    assert set(found) == {*adapters(1), "connector.w"}
    assert torch.equal(found[f"{Q}.lora_A.default.weight"], adapters(1)[f"{Q}.lora_A.default.weight"])
    assert set(found.plain()) == {"connector.w"}
    base = torch.randn(3, 4)
    torch.testing.assert_close(found.fold(f"{Q}.weight", base), base + delta(1, 2.0))
    assert torch.equal(found.fold("connector.w", torch.ones(1)), torch.ones(1))
    assert found.fold(f"{Q}.weight", base.bfloat16()).dtype == torch.bfloat16


def test_adapters_over_a_trained_base_are_folded_into_it(tmp_path: Path) -> None:
    base = torch.randn(3, 4)
    stage(tmp_path, "instruct", {f"{Q}.weight": base, "connector.w": torch.ones(1)})
    stage(tmp_path, "lora", {f"{Q}.base_layer.weight": base + 1, **adapters(1)}, {"instruct": 1.0}, lora_scale=0.5)
    plain = start(tmp_path, lora=1.0).plain()
    assert set(plain) == {f"{Q}.weight", "connector.w"}
    torch.testing.assert_close(plain[f"{Q}.weight"], base + 1 + delta(1, 0.5))
    # Trained anew without adapters: what the older adapters learned is in the base already.
    stage(tmp_path, "full", {f"{Q}.weight": base}, {"lora": 1.0})
    after = start(tmp_path, full=1.0)
    assert torch.equal(after.plain()[f"{Q}.weight"], base) and set(after) == {f"{Q}.weight", "connector.w"}
    # A stage that trains the connector alone keeps the adapters of its ancestor.
    stage(tmp_path, "again", {"connector.w": torch.zeros(1)}, {"lora": 1.0})
    torch.testing.assert_close(start(tmp_path, again=1.0).plain()[f"{Q}.weight"], base + 1 + delta(1, 0.5))


def test_adapters_are_never_mixed(tmp_path: Path) -> None:
    stage(tmp_path, "one", adapters(1), lora_scale=1.0)
    stage(tmp_path, "two", adapters(2), lora_scale=1.0)
    with pytest.raises(ValueError, match="'one' has adapters"):
        start(tmp_path, one=0.5, two=0.5)


def test_the_scale_of_adapters_is_found_in_the_settings(tmp_path: Path) -> None:
    settings = {"config": {"stage": {"lora": {"r": 4, "alpha": 8}}}}
    write_stage(tmp_path / "lora", adapters(1), stage="lora", settings=settings, init_from={}, steps=1)
    assert torch.allclose(start(tmp_path, lora=1.0).fold(f"{Q}.weight", torch.zeros(3, 4)), delta(1, 2.0))
    with pytest.raises(AssertionError, match="scale"):
        write_stage(tmp_path / "none", adapters(1), stage="lora", settings={}, init_from={}, steps=1)


MAPS = {
    "hf": KeyMap([("connector.{...}", "projector.{...}")]),
    "original": KeyMap([("connector.{...}", "model.mm_projector.{...}")]),
}


def test_foreign_files_and_folders_are_renamed_by_the_table_that_knows_them(tmp_path: Path) -> None:
    torch.save({"model.mm_projector.weight": torch.ones(2)}, tmp_path / "mm_projector.bin")
    found = initial_tensors({str(tmp_path / "mm_projector.bin"): 1.0}, tmp_path, MAPS)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"connector.weight": [1, 1]}
    write_tensors(tmp_path / "folder/model.safetensors", {"projector.weight": torch.ones(1)})
    (tmp_path / "folder/config.json").write_text("{}")
    assert set(initial_tensors({"folder": 1.0}, tmp_path, MAPS)) == {"connector.weight"}
    write_tensors(tmp_path / "odd/model.safetensors", {"head.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"cannot be renamed; hf: tensor 'head.weight'.*; original: tensor"):
        initial_tensors({"odd": 1.0}, tmp_path, MAPS)
    # A foreign ancestor is part of a lineage too.
    stage(tmp_path, "instruct", {"language.w": torch.ones(1)}, {"folder": 1.0})
    assert set(initial_tensors({"instruct": 1.0}, tmp_path, MAPS)) == {"connector.weight", "language.w"}

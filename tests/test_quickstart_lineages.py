"""The quickstarts of the other lineages, cut short: every stage trains, hands over, and is tested and reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_mllm.cli import main
from lightning_mllm.inference import load
from tests.test_quickstart import ROOT, pytestmark  # noqa: F401


def test_the_q_former_lineages_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLIP-2's two stages with both kinds of language model, then InstructBLIP from the first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    main(["world", "data/world", "--images", "160", "--seed", "1"])
    few = ["--stage.epochs=0.5"]
    main(["run", "experiments/quickstart/blip2", *few])
    blip2 = json.loads(Path("runs/quickstart/blip2/report.json").read_text())
    assert {f"generative_{language}/cider" for language in ("opt", "t5")} <= set(blip2)
    retrieved = json.loads(Path("runs/quickstart/blip2/representation/test.json").read_text())["scores"]
    assert blip2["representation/text_retrieval_r1"]["value"] == retrieved["text_retrieval_r1"]["value"]
    main(["run", "experiments/quickstart/instructblip", *few])
    instructed = json.loads(Path("runs/quickstart/instructblip/report.json").read_text())
    assert {"vqa_accuracy", "vqa_accuracy_novel", "vqa_accuracy_blind"} <= set(instructed)
    record = json.loads(Path("runs/quickstart/instructblip/instruct/weights/stage.json").read_text())
    assert [each["stage"] for each in record["lineage"]] == ["representation"]


def test_cogvlm_answers_in_words_and_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    main(["world", "data/world", "--images", "160", "--seed", "1"])
    main(["run", "experiments/quickstart/cogvlm", "--stage.epochs=0.5"])
    report = json.loads(Path("runs/quickstart/cogvlm/report.json").read_text())
    names = {"vqa_accuracy", "vqa_accuracy_novel", "box_accuracy"}
    assert names | {f"{name}_blind" for name in names} <= set(report)
    trained = json.loads(Path("runs/quickstart/cogvlm/chat/weights/stage.json").read_text())["names"]
    assert {"connector", "image_boundary", "language"} <= {name.split(".")[0] for name in trained}


def test_sharegpt4v_hands_its_tuned_tower_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who begins the second stage with a plain CLIP trains another net, silently."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    main(["world", "data/world", "--images", "40", "--texts", "4", "--seed", "1"])
    few = ["--stage.steps=2", "--stage.global_batch=4", "--hardware.micro_batch=4", "--data.test=null"]
    for stage in ("align", "pretrain_dense", "instruct_dense"):
        main(["run", "experiments/quickstart/sharegpt4v", "--only", stage, *few])
    run = Path("runs/quickstart/sharegpt4v")
    record = json.loads((run / "instruct_dense/weights/stage.json").read_text())
    assert [each["stage"] for each in record["lineage"]] == ["align", "pretrain"]
    assert {name.split(".")[0] for name in record["names"]} == {"connector", "language"}
    plain, tuned, used = (
        load(run / stage).module.net.get_submodule("vision").state_dict()
        for stage in ("align", "pretrain_dense", "instruct_dense")
    )
    changed = {name for name in plain if not torch.equal(plain[name], tuned[name])}
    assert changed == {name for name in plain if name.startswith("transformer.resblocks.2.")}
    assert all(torch.equal(tuned[name], used[name]) for name in tuned)

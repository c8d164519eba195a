"""`mllm memory`: what one rank needs, told before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_mllm.cli import main
from lightning_mllm.commands.memory import SIZES
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.seq2seq import Seq2SeqLM

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

PUBLISHED = {
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "lmsys/vicuna-13b-v1.5": 13_015_864_320,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "google/flan-t5-xl": 2_849_757_184,
    "google/flan-t5-xxl": 11_135_332_352,
}
"""Parameters that the hub counts in the files of each."""


def test_the_stages_of_an_experiment_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["memory", "quickstart/llava", "--hardware", "cpu", "--align.hardware.micro_batch=8"])
    head, rule, *rows = capsys.readouterr().out.splitlines()
    columns = [each.strip() for each in head.strip("|").split("|")]
    assert columns[-6:] == ["parameters", "gradients", "optimizer", "activations", "temporary", "peak"]
    assert set(rule) <= set("| -")
    cells = [[each.strip() for each in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["quickstart/llava/align", "quickstart/llava/instruct"]
    assert [row[1].split()[0] for row in cells] == ["8", "16"]
    assert all(float(row[-1]) > 0 for row in cells)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["llava15_14b"], "llava15_14b: found no such folder, expected an experiment"),
        (["llava15_13b", "--hardware", "gpu9"], "--hardware: found 'gpu9', expected one of cpu, gpu1, gpu8"),
        (["llava15_13b", "--only", "alin"], "--only: found 'alin', expected one of align, instruct"),
        (["llava15_13b", "--images=-1"], "--images: found -1, expected 0 or more"),
        (["llava15_13b", "--hardware.micro_batch=3"], "stage.global_batch: found 256, expected a multiple of 24"),
        (["llava15_13b", "--trainer.num_nodes=3"], "stage.global_batch: found 256, expected a multiple of 96"),
        ([], "memory: the following arguments are required: EXPERIMENT"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["memory", *arguments])
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_published_files(name: str) -> None:
    config = yaml.safe_load(SIZES.read_text())[name]
    kind: Any = Seq2SeqLM if config["model_type"] == "t5" else CausalLM
    with torch.device("meta"):
        net = kind(config=config).build()
    assert sum(each.numel() for each in net.parameters()) == PUBLISHED[name]


def test_every_language_model_that_recipes_name_is_known() -> None:
    known = yaml.safe_load(SIZES.read_text())
    for file in EXPERIMENTS.rglob("*.yaml"):
        for line in file.read_text().splitlines():
            key, _, value = line.split("#")[0].strip().partition(": ")
            if key in ("model", "tokenizer", "reader") and "/" in value and not value.startswith(('"package:', "&")):
                assert value in known or (EXPERIMENTS / value).exists(), f"{file}: {value}"

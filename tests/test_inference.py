"""Trained models for use: pictures in order, nothing cut without a word, folders that say how they are asked."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.llava import TINY, LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.commands import ask
from lightning_mllm.contracts import Sample, Turn
from lightning_mllm.export.export import export_module, hf_folder
from lightning_mllm.inference import Model, load, load_apart
from lightning_mllm.language.lora import Lora, merge_lora
from lightning_mllm.language.tokenizer import byte_tokenizer
from lightning_mllm.processing.limits import TextLimits
from lightning_mllm.processing.query_text import QueryText
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.stage_weights import write_stage
from tests.architectures.blip2s import built, eva
from tests.interop.test_hf_llava import net
from tests.processing.test_tokenizer_template import TEMPLATES

RED, BLUE = Image.new("RGB", (20, 30), (200, 0, 0)), Image.new("RGB", (30, 20), (0, 0, 200))


def foreign(module: LLaVA, folder: Path, jinja: str, file: str = "chat_template.jinja") -> Path:
    """A folder as somebody else would write it: without notes of ours, and with another template."""
    hf_folder(module).write(folder)
    for name in ("lightning_mllm.json", "chat_template.jinja"):
        (folder / name).unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if jinja:
        (folder / file).write_text(json.dumps({"chat_template": jinja}) if file.endswith(".json") else jinja)
    return folder


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
@pytest.mark.parametrize("name", ["mistral", "lists, a blank behind the prompt"])
def test_a_folder_of_somebody_else_is_asked_in_its_own_way(tmp_path: Path, name: str, file: str) -> None:
    module, jinja = net(), TEMPLATES[name][0]
    found = load(foreign(module, tmp_path / "folder", jinja, file))
    assert found.module.processor.chat.name == "tokenizer" and found.module.processor.stop_rule.tokens == [2]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    expected = net(language=replace(TINY["language"], model=str(tmp_path / "tokenizer")), chat="tokenizer")
    assert found.answer(RED, "What?") == Model(expected).answer(RED, "What?") != Model(module).answer(RED, "What?")


def test_a_folder_that_does_not_say_how_it_is_asked_is_told(tmp_path: Path) -> None:
    module = net()
    folder = foreign(module, tmp_path / "folder", "")
    with pytest.raises(ValueError, match=r"folder: found no chat template \(chat_template.jinja\), expected one, or"):
        load(folder)
    named = load(folder, chat="vicuna_v1")
    assert named.answer(RED, "What?") == Model(module).answer(RED, "What?")
    with pytest.raises(ValueError, match=r"chat: found 'vicuna_v1' for .*run, expected none: a run knows its own"):
        load(tmp_path / "run", chat="vicuna_v1")


def test_pictures_stand_in_order_before_a_text_that_names_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module = net()
    hf_folder(module).write(tmp_path / "folder")
    files = [tmp_path / "red.png", tmp_path / "blue.png"]
    for image, file in zip((RED, BLUE), files, strict=True):
        image.save(file)
    model = Model(module)
    both = model.answer([RED, BLUE], "Same?")
    assert both == model.answer([RED, BLUE], "<image>\n<image>\nSame?") != model.answer(RED, "Same?")
    ask.main([str(tmp_path / "folder"), "--image", str(files[0]), "--image", str(files[1]), "Same?"])
    assert capsys.readouterr().out.strip() == both.strip()
    ask.main([str(tmp_path / "folder"), "2 + 2?"])
    assert capsys.readouterr().out.strip() == model.answer(None, "2 + 2?").strip()
    with pytest.raises(ValueError, match="found 1 <image> marks for 2 images, expected as many; write <image> where"):
        model.answer([RED, BLUE], "<image> Same?")


def test_a_question_that_would_be_cut_is_refused_with_both_numbers() -> None:
    """The limit holds the begin token and the template too."""
    module = built(Blip2, **eva("opt", text_limits=TextLimits(prompt=60), max_length=300))
    model, processor = Model(module), module.processor
    asked = Sample(id="q", turns=(Turn(role="user", text="Is it so? " * 5 + "Is"),))
    found = len(processor.encode(asked, generate=True, may_cut=False).tokens)
    assert found <= 60 and model.answer(None, asked.turns[0].text) is not None
    processor.text_limits = TextLimits(prompt=found - 1)
    with pytest.raises(ValueError, match=rf"found a prompt of {found} tokens, expected at most {found - 1}$"):
        model.answer(None, asked.turns[0].text)
    assert processor.encode(asked, generate=True).notes == ("cut",)
    module = net(max_length=200)
    with pytest.raises(ValueError, match=r"found a prompt of \d+ tokens, expected at most 200"):
        Model(module).answer(None, "word " * 5000)


def test_what_a_q_former_reads_is_not_cut_without_a_word() -> None:
    module = net()
    module.processor.query_text = QueryText(tokenizer=byte_tokenizer(), max_length=16)
    module.processor.text_limits = TextLimits(prompt=10_000)
    assert Model(module).answer(None, "Is it?") is not None
    with pytest.raises(ValueError, match=r"found a question of 19 tokens for the Q-Former, expected at most 16$"):
        Model(module).answer(None, "Is it red or blue?")


def test_adapters_of_a_run_stay_apart_for_an_export_and_are_folded_for_use(tmp_path: Path) -> None:
    trained = LLaVA.tiny(stage=StageSettings(name="instruct_lora", lora=Lora(r=4, alpha=8)))
    trained.configure_model()
    with torch.no_grad():
        for parameter in (each for name, each in trained.net.named_parameters() if "lora_B" in name):
            parameter.normal_(std=0.1)
    stage = tmp_path / "run/lora"
    tensors = trained.trained_tensors()
    write_stage(stage, tensors, stage="instruct_lora", settings={}, init_from={}, steps=1, lora_scale=2.0)
    parts = {name: asdict(TINY[name]) for name in ("vision", "language")}
    connector = {"class_path": "lightning_mllm.connectors.projector.MlpConnector"}
    settings = {
        "model": {
            "class_path": "lightning_mllm.architectures.llava.LLaVA",
            "init_args": {**parts, "connector": connector},
        },
        "stage": {"name": "instruct_lora", "lora": {"r": 4, "alpha": 8}, "init_from": {}},
        "runs": str(tmp_path),
    }
    (stage / "config.yaml").write_text(yaml.safe_dump(settings))
    apart, folded = load_apart(tmp_path / "run"), load(tmp_path / "run").module
    assert apart.lora is not None and apart.lora.scale == 2 and folded.lora is None
    own = apart.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
    merged = merge_lora(own, 2.0)
    assert all(torch.equal(merged[name], tensor) for name, tensor in folded.state_dict().items())


def test_an_architecture_without_a_layout_is_refused_by_name(tmp_path: Path) -> None:
    known = "Blip2, Blip2Representation, CogVLM, LLaVA"
    with pytest.raises(ValueError, match=f"Sphinx: has no layout in transformers, expected one of {known}"):
        export_module(Sphinx.tiny(), tmp_path / "folder")

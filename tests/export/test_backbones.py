"""The shipped backbones: what their recipes make is what transformers and open_clip read, and the cards are true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_mllm.cli import main
from lightning_mllm.export import backbones
from lightning_mllm.inference import load
from lightning_mllm.weights.files import sha256

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "lightning_mllm/backbones"
LIMIT = 25 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with both recipes run for a few steps on a world of a few scenes."""
    folder = tmp_path_factory.mktemp("backbones")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "experiments").symlink_to(ROOT / "experiments")
        main(["world", "data/backbones", "--images", "80", "--texts", "80", "--seed", "2"])
        main(["world", "data/crops", "--images", "80", "--crops", "--seed", "2"])
        for name in ("llama", "clip"):
            main(["run", f"experiments/backbones/{name}", "--stage.global_batch=16", "--hardware.micro_batch=16"])
            backbones.main(["pack", f"runs/backbones/{name}", "--to", f"packed/{name}"])
    return folder


def test_the_tokenizer_writes_any_text_and_learns_answers_only(folder: Path) -> None:
    tokenizer = backbones.train_tokenizer(backbones._texts(folder / "data/backbones"))
    strange = "\u00e9t\u00e9 \u4f60\u597d \U0001f600\tUSER"
    assert tokenizer.decode(tokenizer(strange, add_special_tokens=False)["input_ids"]) == strange
    assert len(tokenizer(" circle", add_special_tokens=False)["input_ids"]) == 1
    turns = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "left"}]
    coded: Any = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    learned = [t for t, m in zip(coded["input_ids"], coded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(learned) == " left</s>"


def test_the_language_model_is_that_of_its_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    net: Any = load("runs/backbones/llama").module
    trained = net.language.state_dict()
    packed = AutoModelForCausalLM.from_pretrained(folder / "packed/llama", dtype=torch.float32)
    for name, tensor in packed.state_dict().items():
        assert torch.equal(tensor, trained[name].half().float()), name


def test_the_clip_is_that_of_its_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    net: Any = load("runs/backbones/clip").module
    trained = net.clip.state_dict()
    config = json.loads((folder / "packed/clip/open_clip_config.json").read_text())["model_cfg"]
    packed = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    open_clip.load_checkpoint(packed, str(folder / "packed/clip/open_clip_model.safetensors"))
    for name, tensor in packed.state_dict().items():
        assert torch.equal(tensor, trained[name].half().float().reshape(tensor.shape)), name


@pytest.mark.parametrize("name", ["llama", "clip"])
def test_the_card_tells_recipe_data_steps_scores_and_checksum(folder: Path, name: str) -> None:
    card = json.loads((folder / "packed" / name / "card.json").read_text())
    assert (ROOT / card["recipe"]).is_file()
    assert card["steps"] >= 1
    assert [world["images"] for world in card["world"]] == [80]
    assert card["scores"]
    assert card["sha256"] == sha256(folder / "packed" / name / card["file"])


def test_a_run_that_was_not_tested_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    results = Path("runs/backbones/llama/pretrain/test.json")
    results.rename("kept.json")
    with pytest.raises(ValueError, match="was tested"):
        backbones.pack(Path("runs/backbones/llama"), Path("packed/again"))
    Path("kept.json").rename(results)


@pytest.mark.skipif(not (SHIPPED / "clip/card.json").is_file(), reason="the backbones are being rebuilt")
def test_what_ships_is_small_and_as_its_cards_say() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) <= LIMIT
    for card in SHIPPED.glob("*/card.json"):
        told = json.loads(card.read_text())
        assert sha256(card.parent / told["file"]) == told["sha256"]
    assert len(AutoTokenizer.from_pretrained(SHIPPED / "llama")) <= backbones.VOCABULARY

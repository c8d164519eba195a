"""The shipped backbones: what their recipes make is what transformers and open_clip read, and the cards are true."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lightning_mllm.cli import main
from lightning_mllm.export import backbones
from lightning_mllm.inference import load
from lightning_mllm.weights.files import sha256

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "lightning_mllm/backbones"
LIMIT = 25 * 2**20
LANGUAGE = {"llama": AutoModelForCausalLM, "opt": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}
NAMES = ("clip", *LANGUAGE)
SMALL = ("--stage.global_batch=16", "--hardware.micro_batch=16")


pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with worlds of a few scenes."""
    folder = tmp_path_factory.mktemp("backbones")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "experiments").symlink_to(ROOT / "experiments")
        main(["world", "data/backbones", "--images", "40", "--texts", "80", "--seed", "2"])
        main(["world", "data/crops", "--images", "40", "--crops", "--seed", "2"])
    return folder


@pytest.fixture(scope="module")
def packed(folder: Path) -> Callable[[str], Path]:
    """Runs a recipe for a few steps in the working directory, once, and gives the folder that it was packed to."""

    @cache
    def run_and_pack(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            main(["run", f"experiments/backbones/{name}", "--stage.epochs=0.5", *SMALL])
            backbones.main(["pack", f"runs/backbones/{name}", "--to", f"packed/{name}"])
        return folder / "packed" / name

    return run_and_pack


def test_the_tokenizer_writes_any_text_and_learns_answers_only(folder: Path) -> None:
    tokenizer = backbones.train_tokenizer(backbones._texts(folder / "data/backbones"))
    strange = "\u00e9t\u00e9 \u4f60\u597d \U0001f600\tUSER"
    assert tokenizer.decode(tokenizer(strange, add_special_tokens=False)["input_ids"]) == strange
    assert len(tokenizer(" circle", add_special_tokens=False)["input_ids"]) == 1
    turns = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "left"}]
    coded: Any = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    learned = [t for t, m in zip(coded["input_ids"], coded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(learned) == " left</s>"


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_a_word_is_one_token_wherever_it_stands(folder: Path, name: str) -> None:
    tokenizer = backbones.train_tokenizer(backbones._readings(folder / "data/backbones"), backbones.STYLES[name])
    for text in ("red</s>", "red\n", "Question: What is red? Answer: red"):
        assert " red" in map(tokenizer.decode, tokenizer(text, add_special_tokens=False)["input_ids"])
    ends = tokenizer.convert_ids_to_tokens(tokenizer("red")["input_ids"])
    assert ends == (["<s>", "\u0120red"] if name == "opt" else ["\u0120red", "</s>"])


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_is_that_of_its_run(
    folder: Path, packed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    packed_to = packed(name)
    monkeypatch.chdir(folder)
    net: Any = load(f"runs/backbones/{name}").module.net
    trained = net.language.state_dict()
    theirs: Any = LANGUAGE[name].from_pretrained(packed_to, dtype=torch.float32)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, trained[key].half().float()), key
    settings = theirs.config.to_dict()
    for key, value in net.language.config.to_dict().items():
        assert key in ("_name_or_path", "architectures", "dtype") or settings[key] == value, key
    assert theirs.generation_config.eos_token_id == ([2, 203] if name == "opt" else 2)


def test_the_clip_is_that_of_its_run(
    folder: Path, packed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed_to = packed("clip")
    monkeypatch.chdir(folder)
    net: Any = load("runs/backbones/clip").module.net
    trained = net.clip.state_dict()
    config = json.loads((packed_to / "open_clip_config.json").read_text())["model_cfg"]
    theirs = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    open_clip.load_checkpoint(theirs, str(packed_to / "open_clip_model.safetensors"))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, trained[name].half().float().reshape(tensor.shape)), name


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_recipe_data_steps_scores_and_checksum(packed: Callable[[str], Path], name: str) -> None:
    packed_to = packed(name)
    card = json.loads((packed_to / "card.json").read_text())
    assert (ROOT / card["recipe"]).is_file()
    assert card["steps"] >= 1
    assert [world["images"] for world in card["world"]] == [40]
    assert card["scores"]
    assert card["sha256"] == sha256(packed_to / card["file"])


def test_a_run_that_was_not_tested_is_refused(
    folder: Path, packed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed("llama")
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
    for name in LANGUAGE:
        assert len(AutoTokenizer.from_pretrained(SHIPPED / name)) <= backbones.VOCABULARY

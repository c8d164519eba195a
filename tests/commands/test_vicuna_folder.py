"""A language model as Vicuna is published, its tokenizer SentencePiece's file: trained, asked, exported, back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_mllm import load
from lightning_mllm.architectures.llava import TINY
from lightning_mllm.cli import main
from lightning_mllm.contracts import IMAGE_MARK, ImageFile, Sample, Turn
from tests.export.in_process import check_in_this_process
from tests.language.sentencepieces import library, llama_model, vicuna_folder


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = vicuna_folder(tmp_path / "vicuna", {"tokenizer_class": "LlamaTokenizer", "legacy": False})
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    rows = len(llama_model().pieces)
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=512, **sizes)).save_pretrained(folder)
    Image.new("RGB", (20, 16), "red").save(tmp_path / "red.png")
    experiment: dict[str, Any] = {
        "model": {
            "class_path": "lightning_mllm.architectures.llava.LLaVA",
            "init_args": {
                "vision": {"weights": None, "config": TINY["vision"].config},
                "connector": {"class_path": "lightning_mllm.connectors.projector.MlpConnector"},
                "language": {"model": "vicuna"},
                "chat": "vicuna_v1",
                "max_length": 256,
                "decoding": {"answer": {"max_new_tokens": 8}},
            },
        },
        "data": {
            "class_path": "data_modules.module.InstructionDataModule",
            "init_args": {
                "train": {"squares": {"class_path": "tests.training.data.Squares", "init_args": {"samples": 8}}}
            },
        },
        "stage": {"name": "instruct", "epochs": 1, "global_batch": 4, "lr": 1.0e-3, "warmup": 0.0},
        "hardware": {"micro_batch": 4},
    }
    file = tmp_path / "vicuna.yaml"
    file.write_text(yaml.safe_dump(experiment))
    return file


def test_a_folder_as_vicunas_is_trained_asked_exported_and_comes_back(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_in_this_process(monkeypatch)
    quiet = "--trainer.enable_progress_bar=false"
    main(["fit", f"--config={experiment}", "--run_dir=runs/vicuna", quiet])
    capsys.readouterr()
    question = "What is it?  </s> And <unk> why?"
    main(["ask", "runs/vicuna", question, "--image=red.png"])
    told = capsys.readouterr().out.strip()
    main(["export", "runs/vicuna", "--to", "exported"])
    back = load("exported")
    assert back.answer("red.png", question) == told

    # The same tokens: as SentencePiece's own library has them, in training, and where transformers reads the folder.
    processor, alone = back.module.processor, library(llama_model())
    turns = (Turn(role="user", text=f"{IMAGE_MARK}\nWho?  Say."), Turn(role="assistant", text="A dog."))
    sample = Sample(id="s", turns=(*turns, Turn(role="user", text="And now?")), images=(ImageFile(Path("red.png")),))
    tokens = processor.encode(sample, generate=True).tokens.tolist()
    system = processor.chat.system  # pyright: ignore[reportAttributeAccessIssue]
    behind = library(llama_model(), add_dummy_prefix=False).encode("USER: And now? ASSISTANT:")
    assert tokens == [
        1,
        *alone.encode(f"{system} USER: "),
        *[processor.image_id] * processor.vectors_per_image,
        *alone.encode("\nWho?  Say. ASSISTANT: A dog."),
        2,
        *behind,
    ]
    theirs: Any = AutoProcessor.from_pretrained("exported")
    messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True)
    found = theirs(images=[Image.open("red.png")], text=[text], return_tensors="pt")["input_ids"][0].tolist()
    assert found == [theirs.image_token_id if token == processor.image_id else token for token in tokens]
    tokenizer: Any = AutoTokenizer.from_pretrained("exported")
    for each in ("end.  The dog", "A dog.</s>USER: \U0001f600", "  "):
        assert tokenizer(each)["input_ids"] == processor.tokenizer(each)["input_ids"]

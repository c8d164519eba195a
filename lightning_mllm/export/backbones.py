"""The tiny backbones that ship with the package: their tokenizer, and trained runs packed into folders.

    python -m lightning_mllm.export.backbones tokenizer WORLD --to lightning_mllm/backbones/llama
    python -m lightning_mllm.export.backbones pack RUN --to lightning_mllm/backbones/llama

`pack` writes what open_clip or transformers reads, in 16-bit floats, and a card: recipe, data, steps, scores, checksum.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IMAGE_MARK
from lightning_mllm.inference import load, stage_of
from lightning_mllm.vision.source import CONFIG, WEIGHTS
from lightning_mllm.weights.files import sha256, write_tensors, write_text

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", IMAGE_MARK)
ROLES = ("USER:", "ASSISTANT:")
VOCABULARY = 512
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER:\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% else %}ASSISTANT:{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens: frequent words are one token, and any text can be written."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIALS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIALS, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(role, normalized=False) for role in ROLES])
    begin = SPECIALS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    unk, bos, eos, pad, image = SPECIALS
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=[image],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _texts(world: Path, conversations: int = 5000) -> Iterator[str]:
    for item in json.loads((world / "text/conversations_train.json").read_text(encoding="utf-8"))[:conversations]:
        for turn in item["conversations"]:
            yield turn["value"] if turn["from"] == "human" else f" {turn['value']}"
    with (world / "text/corpus_train.jsonl").open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(conversations), strict=False):
            yield f" {json.loads(line)['text']}"


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in tensors.items()}


def _write_language(net: Any, folder: Path) -> Path:
    model = net.language.half()
    model.config.dtype = torch.float16
    model.generation_config.eos_token_id = net.processor.tokenizer.eos_token_id
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    write_tensors(
        folder / "model.safetensors",
        {name: tensor for name, tensor in _halved(model.state_dict()).items() if name not in tied},
    )
    return folder / "model.safetensors"


def _write_clip(net: Any, folder: Path) -> Path:
    source = net.parts["clip"].source
    mean, std = source.statistics()
    preprocess = {"size": source.model_config()["vision_cfg"]["image_size"], "mean": mean, "std": std}
    card = {"model_cfg": source.model_config(), "preprocess_cfg": preprocess}
    write_text(folder / CONFIG, json.dumps(card, indent=2) + "\n")
    tensors = _halved(net.clip.state_dict())
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    write_tensors(folder / WEIGHTS, tensors)
    return folder / WEIGHTS


def pack(run: Path, folder: Path) -> None:
    """Writes the run's net to `folder` in 16-bit floats, with `card.json`.

    Raises:
        ValueError: `run` is no finished and tested run.
    """
    stage = stage_of(run)
    results = stage / "test.json"
    if not results.is_file():
        raise ValueError(f"{results}: found no such file, expected a run that was tested (`mllm run`)")
    net: Any = load(run).module
    folder.mkdir(parents=True, exist_ok=True)
    weights = (_write_language if hasattr(net, "language") else _write_clip)(net, folder)
    settings = yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8"))
    record = json.loads((stage / "weights" / "stage.json").read_text(encoding="utf-8"))
    worlds = [json.loads(path.read_text(encoding="utf-8")) for path in _worlds(settings["data"])]
    card = {
        "recipe": f"experiments/{stage.parent.relative_to(stage.parents[2]).as_posix()}/{stage.name}.yaml",
        "world": worlds,
        "seed": settings["seed_everything"],
        "steps": record["steps"],
        "scores": json.loads(results.read_text(encoding="utf-8"))["scores"],
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "file": weights.name,
        "sha256": sha256(weights),
    }
    write_text(folder / "card.json", json.dumps(card, indent=2) + "\n")


def _worlds(data: Any) -> list[Path]:
    """The cards of the worlds whose files the data section names."""
    if isinstance(data, dict):
        return sorted({path for value in data.values() for path in _worlds(value)})
    if not isinstance(data, str):
        return []
    return [parent / "world.json" for parent in Path(data).parents if (parent / "world.json").is_file()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lightning_mllm.export.backbones", description=__doc__)
    parser.add_argument("what", choices=["tokenizer", "pack"])
    parser.add_argument("source", type=Path, help="a small world (tokenizer) or a run (pack)")
    parser.add_argument("--to", required=True, type=Path)
    given = parser.parse_args(arguments)
    if given.what == "tokenizer":
        train_tokenizer(_texts(given.source)).save_pretrained(given.to)
    else:
        pack(given.source, given.to)


if __name__ == "__main__":
    main()

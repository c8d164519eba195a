"""The tiny backbones that ship with the package: their tokenizer, and trained runs packed into folders.

    python -m lightning_mllm.export.backbones tokenizer WORLD --to lightning_mllm/backbones/llama
    python -m lightning_mllm.export.backbones tokenizer WORLD --style opt --to lightning_mllm/backbones/opt
    python -m lightning_mllm.export.backbones pack RUN --to lightning_mllm/backbones/llama

`pack` writes what open_clip or transformers reads, in 16-bit floats, and a card: recipe, data, steps, scores, checksum.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IMAGE_MARK
from lightning_mllm.inference import load, stage_of
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.vision.clip import OpenClipModel
from lightning_mllm.vision.source import CONFIG, WEIGHTS
from lightning_mllm.weights.files import sha256, write_tensors, write_text

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", IMAGE_MARK)
ROLES = ("USER:", "ASSISTANT:")
VOCABULARY = 512
PROMPTS = ("{}", "Question: {} Answer:", "Question: {} Short answer:")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER:\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% else %}ASSISTANT:{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a published family's tokenizer treats a text."""

    roles: tuple[str, ...] = ()
    """Names of speakers, each one token."""
    prefix_space: bool = False
    """Whether a text that begins with a word begins with a space, so that a word is the same token everywhere."""
    single: str
    """A text with the special tokens around it."""
    chat_template: str | None = None


STYLES = {
    "llama": Style(roles=ROLES, single="<s> $A", chat_template=CHAT_TEMPLATE),
    "opt": Style(prefix_space=True, single="<s> $A"),
    "t5": Style(prefix_space=True, single="$A </s>"),
}


def train_tokenizer(texts: Iterator[str], style: Style = STYLES["llama"]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens: frequent words are one token, and any text can be written."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIALS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=style.prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIALS, *style.roles],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(role, normalized=False) for role in style.roles])
    ends = [(token, tokenizer.token_to_id(token)) for token in SPECIALS if token in style.single]
    tokenizer.post_processor = processors.TemplateProcessing(single=style.single, special_tokens=ends)
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
    fast.chat_template = style.chat_template
    return fast


def _texts(world: Path, conversations: int = 5000) -> Iterator[str]:
    for item in json.loads((world / "text/conversations_train.json").read_text(encoding="utf-8"))[:conversations]:
        for turn in item["conversations"]:
            yield turn["value"] if turn["from"] == "human" else f" {turn['value']}"
    with (world / "text/corpus_train.jsonl").open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(conversations), strict=False):
            yield f" {json.loads(line)['text']}"


def _readings(world: Path, scenes: int = 5000) -> Iterator[str]:
    """Captions, and questions as BLIP-2 and InstructBLIP put them."""
    with (world / "text/readings_train.jsonl").open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(scenes), strict=False):
            reading = json.loads(line)
            yield from reading["captions"]
            for pair in reading["questions"]:
                yield from (prompt.format(pair["question"]) for prompt in PROMPTS)
                yield pair["answer"]


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in tensors.items()}


def _write_language(module: MultimodalModule, folder: Path) -> Path:
    model: Any = module.net.language
    model, ends = model.half(), module.processor.stop_rule.tokens
    config = model.config
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    # Of T5 1.1, transformers reads from this whether the decoder's output is scaled.
    config.tie_word_embeddings = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    config.dtype = torch.float16
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    write_tensors(
        folder / "model.safetensors",
        {name: tensor for name, tensor in _halved(model.state_dict()).items() if name not in tied},
    )
    return folder / "model.safetensors"


def _write_clip(module: MultimodalModule, folder: Path) -> Path:
    spec, clip = module.components["clip"], module.net.clip
    assert isinstance(spec, OpenClipModel) and isinstance(clip, nn.Module)
    source = spec.source
    mean, std = source.statistics()
    preprocess = {"size": source.model_config()["vision_cfg"]["image_size"], "mean": mean, "std": std}
    card = {"model_cfg": source.model_config(), "preprocess_cfg": preprocess}
    write_text(folder / CONFIG, json.dumps(card, indent=2) + "\n")
    tensors = _halved(clip.state_dict())
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
    module: Any = load(run).module
    folder.mkdir(parents=True, exist_ok=True)
    weights = (_write_language if hasattr(module.net, "language") else _write_clip)(module, folder)
    settings = yaml.safe_load((stage / "config.yaml").read_text(encoding="utf-8"))
    record = json.loads((stage / "weights" / "stage.json").read_text(encoding="utf-8"))
    worlds = [json.loads(path.read_text(encoding="utf-8")) for path in _worlds(settings["data"])]
    card = {
        "recipe": f"experiments/{stage.parent.relative_to(stage.parents[2]).as_posix()}/{stage.name}.yaml",
        "world": worlds,
        "seed": settings["seed_everything"],
        "steps": record["steps"],
        "scores": json.loads(results.read_text(encoding="utf-8"))["scores"],
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "file": weights.name,
        "sha256": sha256(weights),
    }
    write_text(folder / "card.json", json.dumps(card, indent=2) + "\n")


def _worlds(data: object) -> list[Path]:
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
    parser.add_argument("--style", choices=sorted(STYLES), default="llama", help="of a tokenizer")
    given = parser.parse_args(arguments)
    if given.what == "tokenizer":
        texts = _texts if given.style == "llama" else _readings
        train_tokenizer(texts(given.source), STYLES[given.style]).save_pretrained(given.to)
    else:
        pack(given.source, given.to)


if __name__ == "__main__":
    main()

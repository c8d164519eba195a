"""BLIP-2's nets in small, here and in transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.contracts import Batch, Sample, TokenKind
from lightning_mllm.export import export, verify
from lightning_mllm.export.export import hf_folder
from lightning_mllm.export.importing import import_folder
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.seq2seq import TINY_T5, Seq2SeqLM
from lightning_mllm.processing.limits import TextLimits
from lightning_mllm.vision.eva import EvaTower
from tests.architectures.samples import SIDE
from tests.interop.tables import folder_format

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}

EVA = EvaTower(weights=None, depth=2, image_size=SIDE, patch_size=8, width=32, heads=2, feedforward=48)
NORM = LayerNormConnector(eps=1e-6)
"""As transformers has it."""

OPT = CausalLM(
    config={
        "model_type": "opt",
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 272,
        "max_position_embeddings": 512,
        "dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)
TIED_T5 = Seq2SeqLM(config={**(TINY_T5.config or {}), "tie_word_embeddings": True})
LANGUAGES: dict[str, Any] = {"opt": OPT, "llama": TINY_LLAMA, "t5": TIED_T5, "flan-t5": TINY_T5}

INSTRUCTED: dict[str, Any] = {"reader": "", "chat": "instructblip", "text_limits": TextLimits(prompt=128, answer=255)}
"""Settings of a `tiny()` that is an InstructBLIP: its Q-Former reads the instruction, in bytes."""


def eva(language: str = "", **settings: Any) -> dict[str, Any]:
    """Settings of a `tiny()` that transformers can hold."""
    given = {"language": LANGUAGES[language]} if language else {}
    if language.endswith("t5"):
        given["chat"] = "blip2_t5"
    return {"vision": EVA, "ln_vision": NORM, **given, **settings}


def built(kind: type[Any], seed: int = 0, spread: float = 0.1, **settings: Any) -> Any:
    """A net with values that no initialisation would give; everything in it has a gradient."""
    module = kind.tiny(**settings)
    module.configure_model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(True)


def theirs(ours: Any, folder: Path) -> Any:
    """transformers' own, with the same values."""
    hf_folder(ours).write(folder)
    loaded: Any = getattr(transformers, folder_format(ours).hf_class).from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def collated(module: Any, *samples: Sample, side: str = "right", generate: bool = False) -> Batch:
    rows = [module.processor.encode(each, generate=generate) for each in samples]
    return module.processor.collate(rows, padding="left" if generate else side)


def their_inputs(ours: Any, batch: Batch, model: Any) -> dict[str, Tensor]:
    """What transformers' model takes for our batch."""
    tower = ours.net.vision
    return {
        "input_ids": batch.tokens.masked_fill(batch.kinds == TokenKind.IMAGE, model.config.image_token_id or 0),
        "attention_mask": (batch.segments > 0).long(),
        "pixel_values": (batch.images / 255 - tower.mean) / tower.std,
    }


def same_gradients(ours: Any, model: Any) -> None:
    """Of every parameter, after both have gone backwards."""
    named = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    expected = dict(folder_format(ours).table({}).to_ours(named, model.config.to_dict()))
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in ours.net.named_parameters()}
    lacking = {name for name in found if name not in expected}
    assert all(name.startswith("heads.") for name in lacking), lacking
    assert set(expected) <= set(found), set(expected) - set(found)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    assert sum(bool(gradient.any()) for gradient in expected.values()) > 0.8 * len(expected)


@dataclass(frozen=True)
class Found:
    """What `verify` finds in a folder, and the net that comes back from it."""

    difference: str
    back: Any
    tensors: dict[str, Tensor]


def exported(module: Any, folder: Path) -> Found:
    """An export, compared in this process (a fresh one costs many seconds)."""
    layout = hf_folder(module)
    layout.write(folder / "folder")
    export.write_case(module.float().eval(), layout, folder / "case")
    difference = compared(folder)
    back = import_folder(folder / "folder")
    back.configure_model()
    return Found(difference, back.eval(), load_file(folder / "folder/model.safetensors"))


def compared(folder: Path) -> str:
    """What transformers does otherwise with `folder/folder` than our net did in `folder/case`."""
    facts = json.loads((folder / "case/case.json").read_text())
    return verify.compare(folder / "folder", load_file(folder / "case/case.safetensors"), facts)


def same_state(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

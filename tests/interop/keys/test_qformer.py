"""What our parts are called in folders that transformers writes, and in LAVIS's files, from whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2VisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipVisionConfig,
    OPTConfig,
)

from lightning_mllm.connectors.alignment import AlignmentConnector
from lightning_mllm.interop.keys.eva import BLIP2_VISION_KEYS, EVA_KEYS
from lightning_mllm.interop.keys.qformer import (
    BLIP2_HEADS_KEYS,
    BLIP2_QFORMER_KEYS,
    INSTRUCTBLIP_QFORMER_KEYS,
    LAVIS_HEADS_KEYS,
    LAVIS_QFORMER_KEYS,
    with_last_text,
)
from lightning_mllm.vision.eva import EvaTower
from lightning_mllm.weights.files import TensorFiles
from lightning_mllm.weights.keymap import KeyMap
from tests.connectors.qformers import HF_SIZES, SIZES, qformer

VISION: dict[str, Any] = {
    "hidden_size": 10,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
}
LANGUAGE = OPTConfig(
    vocab_size=30,
    hidden_size=8,
    ffn_dim=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    word_embed_proj_dim=8,
    max_position_embeddings=16,
)
TOWER = KeyMap([("ln_vision.{...}", "vision_model.post_layernorm.{...}")]) + BLIP2_VISION_KEYS.under(
    "vision.", "vision_model."
)
WRITER = KeyMap([("projection.linear.{...}", "language_projection.{...}"), ("language.{...}", "language_model.{...}")])
BLIP2 = TOWER + BLIP2_QFORMER_KEYS.under("qformer.", "")
LAYOUTS = {
    "blip2": BLIP2 + WRITER,
    "retrieval": BLIP2 + BLIP2_HEADS_KEYS.under("heads.", ""),
    "instructblip": TOWER + INSTRUCTBLIP_QFORMER_KEYS.under("qformer.", "") + WRITER,
}
TEXT = {"blip2": "none", "retrieval": "full", "instructblip": "instruction"}
QUERIES = {"num_query_tokens": SIZES["queries"]}


def write(layout: str, folder: Path) -> dict[str, Tensor]:
    """A small model in `folder` with random values, and the tensors there."""
    model: Any
    if layout == "instructblip":
        vision = InstructBlipVisionConfig(**VISION)
        config: Any = InstructBlipConfig(
            vision_config=vision, qformer_config=HF_SIZES, text_config=LANGUAGE.to_dict(), **QUERIES
        )
        model = InstructBlipForConditionalGeneration(config)
    else:
        text = {"use_qformer_text_input": layout == "retrieval"}
        config = Blip2Config(
            vision_config=Blip2VisionConfig(**VISION),
            qformer_config={**HF_SIZES, **text},
            text_config=LANGUAGE.to_dict(),
            image_text_hidden_size=6,
            **QUERIES,
        )
        model = Blip2ForImageTextRetrieval(config) if layout == "retrieval" else Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_()
            if name.endswith("qkv.bias"):
                parameter[10:20] = 0
    model.save_pretrained(folder)
    return dict(TensorFiles(folder).items())


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def parts(text: str) -> dict[str, Tensor]:
    """Tensors of our own parts but the language model's, and what it is reached by."""
    tower = EvaTower(weights=None, depth=2, image_size=4, patch_size=2, width=10, heads=2, feedforward=12).build()
    built = {"vision": tower, "ln_vision": torch.nn.LayerNorm(10), "qformer": qformer(text)}
    if text == "full":
        built["heads"] = AlignmentConnector(in_width=16, width=6, vocab=21).build()
    return {f"{part}.{name}": t for part, module in built.items() for name, t in module.state_dict().items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_transformers_there_and_back(tmp_path: Path, layout: str) -> None:
    disk = write(layout, tmp_path)
    ours = dict(LAYOUTS[layout].to_ours(disk))
    assert same(dict(LAYOUTS[layout].to_theirs(ours.items())), disk)
    assert same({name: load() for name, load in LAYOUTS[layout].lazily(disk).items()}, ours)

    expected = {name: tensor.shape for name, tensor in parts(TEXT[layout]).items()}
    found = {n: t.shape for n, t in ours.items() if not n.startswith(("language.", "projection."))}
    lacking = {name for name in expected if name not in found}
    assert {n: s for n, s in found.items() if n in expected} == {n: s for n, s in expected.items() if n in found}
    # What transformers has no place for, and what we have none for.
    heads = {f"heads.{name}" for name in ("temperature", "transform.weight", "transform.bias", "bias")}
    heads |= {"heads.norm.weight", "heads.norm.bias"}
    assert lacking == (heads if layout == "retrieval" else set())
    surplus = {name.rpartition(".")[0].rpartition(".")[0] for name in found if name not in expected}
    assert surplus == ({"qformer.layers.2.text_feed_forward"} if layout == "instructblip" else set())


def test_the_text_that_nothing_comes_of_is_written_all_the_same(tmp_path: Path) -> None:
    disk = write("instructblip", tmp_path)
    ours = {name: tensor for name, tensor in parts("instruction").items()}
    there = dict(LAYOUTS["instructblip"].to_theirs(with_last_text(ours.items(), layers=3)))
    assert there.keys() == {name for name in disk if not name.startswith("language_")}
    assert torch.equal(
        there["qformer.encoder.layer.2.intermediate.dense.bias"],
        there["qformer.encoder.layer.2.intermediate_query.dense.bias"],
    )
    assert len(there) == len(dict(with_last_text(ours.items(), layers=3)))


LAVIS = (
    KeyMap([("ln_vision.{...}", "ln_vision.{...}")])
    + EVA_KEYS.under("vision.", "visual_encoder.")
    + LAVIS_QFORMER_KEYS.under("qformer.", "")
    + LAVIS_HEADS_KEYS.under("heads.", "")
)

BLOCK = [
    *(f"{kind}.self.{name}" for kind in ("attention", "crossattention") for name in ("query", "key", "value")),
    *(f"{kind}.output.{name}" for kind in ("attention", "crossattention") for name in ("dense", "LayerNorm")),
    *("intermediate.dense", "output.dense", "output.LayerNorm"),
    *("intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"),
]
VIT = [
    *("attn.q_bias", "attn.v_bias", "attn.qkv.weight"),
    *(
        f"{name}.{kind}"
        for name in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ),
]


def lavis_names() -> set[str]:
    """As `Blip2Qformer(...).state_dict()` of LAVIS has them, without those that are computed or stand there twice."""
    embeddings = [f"embeddings.{name}" for name in ("word_embeddings.weight", "position_embeddings.weight")]
    embeddings += ["embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"]
    blocks = [f"encoder.layer.{n}.{name}" for n in range(3) for name in BLOCK if n != 1 or "cross" not in name]
    pairs = [f"Qformer.bert.{name}" for name in blocks] + ["ln_vision", "vision_proj", "text_proj", "itm_head"]
    pairs += ["Qformer.cls.predictions.transform.dense", "Qformer.cls.predictions.transform.LayerNorm"]
    tower = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    tower += [f"blocks.{n}.{name}" for n in range(2) for name in VIT]
    return {
        "query_tokens",
        "temp",
        "Qformer.cls.predictions.bias",
        *(f"Qformer.bert.{name}" for name in embeddings),
        *(f"{name}.{kind}" for name in pairs for kind in ("weight", "bias")),
        *(f"visual_encoder.{name}" for name in tower),
    }


def test_a_file_of_lavis_there_and_back() -> None:
    ours = parts("full")
    there = dict(LAVIS.to_theirs(ours.items()))
    assert there.keys() == lavis_names()
    assert there["temp"].shape == ()
    twice = {
        "Qformer.bert.embeddings.position_ids": torch.arange(9)[None],
        "Qformer.cls.predictions.decoder.weight": there["Qformer.bert.embeddings.word_embeddings.weight"],
        "Qformer.cls.predictions.decoder.bias": there["Qformer.cls.predictions.bias"],
    }
    assert same(dict(LAVIS.to_ours({**there, **twice})), ours)


@pytest.mark.parametrize("layout", [*LAYOUTS, "lavis"])
def test_an_unknown_name_is_refused(layout: str) -> None:
    keys = {**LAYOUTS, "lavis": LAVIS}[layout]
    for name in ("qformer.encoder.layer.0.attention.self.query.weight", "Qformer.bert.pooler.dense.weight", "x"):
        with pytest.raises(ValueError, match=f"tensor '{name}' has no name here"):
            list(keys.to_ours([(name, torch.ones(1))]))

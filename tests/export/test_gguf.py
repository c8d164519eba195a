"""The route of docs/gguf.md to llama.cpp: an exported LLaVA has the names and settings that its converters read.

The rules are facts of llama.cpp (conversion/llama.py, tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py and
clip-impl.h, read in November 2026), written anew.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_mllm.connectors.projector import LinearConnector, MlpConnector
from tests.documents import ROOT, files
from tests.interop.test_hf_llava import net, written

REQUIRED = ("image_size", "patch_size", "hidden_size", "intermediate_size", "projection_dim", "num_attention_heads")
REQUIRED += ("layer_norm_eps", "num_hidden_layers", "hidden_act", "vision_feature_layer")
RENAMED = (
    *(("vision_model", "v"), ("encoder.layers", "blk"), ("embeddings.", ""), ("_proj", ""), ("self_attn.", "attn_")),
    *(("layer_norm", "ln"), ("layernorm", "ln"), ("mlp.fc1", "ffn_down"), ("mlp.fc2", "ffn_up")),
    *(("embedding", "embd"), ("layrnorm", "ln")),
)
IGNORED = ("vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias")
"""By the converter, where there is a projector."""


def mmproj(name: str) -> str:
    """A tensor of CLIP or of the projector as its converter calls it."""
    if name.startswith("multi_modal_projector."):
        return name.replace("multi_modal_projector", "mm").replace("linear_1", "0").replace("linear_2", "2")
    for theirs, short in RENAMED:
        name = name.replace(theirs, short)
    return name


def loaded(blocks: int) -> set[str]:
    """What `llama-mtmd-cli` asks of a file whose projector is `mlp`."""
    both = [f"v.blk.{n}.{part}" for n in range(blocks) for part in ("ln1", "ln2", "ffn_down", "ffn_up")]
    both += [f"v.blk.{n}.attn_{part}" for n in range(blocks) for part in ("q", "k", "v", "out")]
    both += ["v.pre_ln", "mm.0", "mm.2"]
    alone = {"v.class_embd", "v.patch_embd.weight", "v.position_embd.weight"}
    return {f"{each}.{kind}" for each in both for kind in ("weight", "bias")} | alone


@pytest.mark.parametrize("connector", [LinearConnector(), MlpConnector()])
def test_a_folder_has_the_names_that_llama_cpp_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connector: LinearConnector | MlpConnector
) -> None:
    exported = written(net(connector=connector), tmp_path / "export")
    script = tmp_path / "gguf_parts.py"
    script.write_text(files((ROOT / "docs/gguf.md").read_text(encoding="utf-8"))["gguf_parts.py"])
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "export"), str(tmp_path / "clip")])
    runpy.run_path(str(script))
    config = json.loads((tmp_path / "clip/config.json").read_text())
    assert set(REQUIRED) <= set(config)
    blocks = config["num_hidden_layers"]
    layer = config["vision_feature_layer"]
    assert (layer if layer >= 0 else blocks + layer + 1) == blocks, "the converter would drop a block that is used"
    tower = load_file(tmp_path / "clip/model.safetensors")
    projector = torch.load(tmp_path / "clip/llava.projector", weights_only=True)
    assert {mmproj(name) for name in [*tower, *projector] if name not in IGNORED} == loaded(blocks)
    assert tower["vision_model.embeddings.patch_embedding.weight"].shape == (
        *(config["hidden_size"], 3),
        *(config["patch_size"], config["patch_size"]),
    )

    # The language model: `language_model.` is taken off, towers and projectors are left out.
    words = [name.removeprefix("language_model.") for name in exported if name.startswith("language_model.")]
    layer = (
        r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|(input|post_attention)_layernorm)\.\w+"
    )
    others = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert {name for name in words if not re.fullmatch(layer, name)} == others
    left = {name.partition(".")[0] for name in exported} - {"language_model"}
    assert left == {"vision_tower", "multi_modal_projector"}
    settings = json.loads((tmp_path / "export/config.json").read_text())
    assert settings["architectures"] == ["LlavaForConditionalGeneration"]
    assert settings["text_config"]["model_type"] == "llama" and "vocab_size" in settings["text_config"]
    assert (tmp_path / "export/tokenizer.json").is_file()

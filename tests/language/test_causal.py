from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lightning_mllm.component import ComponentSpec
from lightning_mllm.language.causal import CausalLM
from tests.language.models import CONFIGS, LLAMA, small


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_gives_the_model_that_transformers_reads_from_it(name: str, tmp_path: Path) -> None:
    model = small(name)
    model.save_pretrained(tmp_path)
    spec = CausalLM(model=str(tmp_path))
    assert isinstance(spec, ComponentSpec)
    built, found = spec.build(), dict(spec.pretrained() or ())
    assert (spec.width, spec.vocab) == (32, 64)
    assert len(spec.blocks(built)) == 2
    built.load_state_dict(found, strict=False)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(built.eval()(tokens).logits, theirs(tokens).logits)


def test_shards_are_read(tmp_path: Path) -> None:
    model = small("llama")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    found = dict(CausalLM(model=str(tmp_path)).pretrained() or ())
    assert found.keys() == model.state_dict().keys()


def test_files_of_old_times_and_of_headless_models_are_read(tmp_path: Path) -> None:
    small("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file({**tensors, "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file)
    spec = CausalLM(model=str(tmp_path))
    assert set(dict(spec.pretrained() or ())) == set(spec.build().state_dict())
    save_file({**tensors, "layers.0.self_attn.q_prj.weight": torch.ones(4)}, file)
    with pytest.raises(ValueError, match=r"'layers\.0\.self_attn\.q_prj\.weight' is not in the model, the nearest"):
        dict(spec.pretrained() or ())


def test_weights_are_fresh_named_or_the_folders_own(tmp_path: Path) -> None:
    small("llama").save_pretrained(tmp_path)
    own = CausalLM(model=str(tmp_path))
    assert own.pretrained() is not None
    assert replace(own, weights=None).pretrained() is None
    stated = CausalLM(config=LLAMA)
    assert stated.pretrained() is None
    assert replace(stated, weights=str(tmp_path)).pretrained() is not None
    # The folder then names only the tokenizer.
    assert replace(own, config=LLAMA).pretrained() is None


def test_building_without_memory() -> None:
    with init_empty_weights(include_buffers=False):
        model = CausalLM(config=LLAMA).build()
    assert all(p.is_meta for p in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_dtype_is_stated_or_the_default() -> None:
    # A published folder's own dtype (float16 for Vicuna) must not decide how we train.
    spec = CausalLM(config={**LLAMA, "dtype": "float16"})
    assert spec.build().lm_head.weight.dtype == torch.float32
    assert replace(spec, dtype="bfloat16").build().lm_head.weight.dtype == torch.bfloat16
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert spec.build().lm_head.weight.dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_builds_share_nothing() -> None:
    spec = CausalLM(config=LLAMA)
    one, two = spec.build(), spec.build()
    assert one.config is not two.config and one.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "found neither model nor config"),
        ({"config": {"model_type": "lama"}}, "found 'lama', expected a causal one such as 'llama'"),
        ({"config": {"hidden_size": 32}}, "model_type: found None"),
        ({"config": {"model_type": "t5"}}, "model_type: found 't5'"),
        ({"config": {**LLAMA, "hidden_sze": 3}}, "found 'hidden_sze', .* the nearest is 'hidden_size'"),
        ({"config": {"model_type": "gemma2"}}, "found final_logit_softcapping = 30"),
        ({"model": "nobody/nothing"}, "'nobody/nothing', expected a causal language model"),
        ({"model": "package:backbones/none"}, "expected a file or folder of the package"),
        ({"config": LLAMA, "dtype": "bf16"}, "found 'bf16', expected a dtype of torch"),
        ({"config": LLAMA, "dtype": "float33"}, "found 'float33', expected a dtype of torch"),
        ({"config": LLAMA, "weights": "nobody/nothing"}, "'nobody/nothing' are no folder and cannot be downloaded"),
    ],
)
def test_models_that_cannot_be_had(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        spec = CausalLM(**settings)
        spec.build()
        list(spec.pretrained() or ())


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model"}')
    with pytest.raises(ValueError, match="a model of type 'clip_vision_model', expected a causal"):
        CausalLM(model=str(tmp_path)).build()

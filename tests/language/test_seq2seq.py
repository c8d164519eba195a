from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from lightning_mllm.component import ComponentSpec
from lightning_mllm.language.seq2seq import TINY_T5, Seq2SeqLM
from lightning_mllm.training.initialise import build_empty, materialise
from tests.language.models import FLAN, T5, perturbed

INPUTS: dict[str, Any] = {"input_ids": torch.arange(6)[None], "labels": torch.arange(4)[None]}


@pytest.mark.parametrize("config", [T5, FLAN], ids=["tied", "untied"])
def test_a_folder_gives_the_model_that_transformers_reads_from_it(config: dict[str, Any], tmp_path: Path) -> None:
    model = perturbed(Seq2SeqLM(config=config).build())
    model.save_pretrained(tmp_path)
    spec = Seq2SeqLM(model=str(tmp_path))
    assert isinstance(spec, ComponentSpec)
    built = spec.build()
    assert (spec.width, spec.vocab) == (32, 64)
    assert len(spec.blocks(built)) == 2 + 1
    built.load_state_dict(dict(spec.pretrained() or ()), strict=False)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(built.eval()(**INPUTS).logits, theirs(**INPUTS).logits)


def test_the_head_is_the_embedding_unless_the_configuration_says_otherwise() -> None:
    for config, tied in ((T5, True), (FLAN, False)):
        spec = Seq2SeqLM(config=config)
        empty = build_empty(spec)
        materialise(empty, torch.device("cpu"))
        for model in (spec.build(), empty):
            names = {name for name, _ in model.named_parameters()}
            assert ("lm_head.weight" in names) != tied
            assert not {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} & names


def test_a_fresh_untied_head_starts_with_logits_of_about_one() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        logits = TINY_T5.build().eval()(**INPUTS).logits
    assert 0.5 < logits.std() < 2


@pytest.mark.parametrize("kept", ["shared.weight", "lm_head.weight"])
def test_one_of_two_equal_tensors_may_be_missing(kept: str, tmp_path: Path) -> None:
    model: Any = Seq2SeqLM(config=FLAN).build()
    model.lm_head.weight.data = model.shared.weight.data.clone()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (dropped,) = {"shared.weight", "lm_head.weight"} - {kept}
    save_file({name: value for name, value in tensors.items() if name != dropped}, tmp_path / "model.safetensors")
    found = dict(Seq2SeqLM(model=str(tmp_path)).pretrained() or ())
    assert torch.equal(found["shared.weight"], found["lm_head.weight"])


def test_overrides_are_forced_on_what_was_read(tmp_path: Path) -> None:
    Seq2SeqLM(config={**FLAN, "dense_act_fn": "gelu_new"}).build().save_pretrained(tmp_path)
    plain = Seq2SeqLM(model=str(tmp_path))
    exact = replace(plain, overrides={"dense_act_fn": "gelu"})
    assert (plain.hf_config.dense_act_fn, exact.hf_config.dense_act_fn) == ("gelu_new", "gelu")
    model: Any = exact.build()
    assert model.config.dense_act_fn == "gelu"
    assert type(model.encoder.block[0].layer[1].DenseReluDense.act).__name__ == "GELUActivation"
    with pytest.raises(ValueError, match=r"language\.overrides: found 'dense_act', .* nearest is 'dense_act_fn'"):
        replace(plain, overrides={"dense_act": "gelu"}).build()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "found neither model nor config"),
        ({"config": {"model_type": "llama"}}, "found 'llama', expected an encoder-decoder one such as"),
        ({"config": {"model_type": "t5", "d_modl": 3}}, "found 'd_modl', .* the nearest is 'd_model'"),
        ({"model": "nobody/nothing"}, "'nobody/nothing', expected an encoder-decoder language model"),
        ({"config": {"model_type": "t5", "num_heads": 2}, "previous_token_heads": 3}, "found 3 with 2 heads"),
    ],
)
def test_models_that_cannot_be_had(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Seq2SeqLM(**settings).build()

"""Export and import of LLaVA: transformers says what we say, and what it would not say is never given out."""

from __future__ import annotations

import gc
import json
import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from lightning_mllm.architectures.llava import TINY, LLaVA
from lightning_mllm.connectors.projector import LinearConnector, MlpConnector
from lightning_mllm.export import export, verify
from lightning_mllm.export.export import hf_folder
from lightning_mllm.export.importing import import_folder
from lightning_mllm.inference import Model, load
from lightning_mllm.interop import hf_llava, llava_original
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.tokenizer import byte_tokenizer
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.stage_weights import initial_tensors, write_stage
from tests.architectures.blip2s import OPT
from tests.processing.test_tokenizer_template import TEMPLATES


def net(seed: int = 0, spread: bool = True, **settings: Any) -> LLaVA:
    """A tiny net whose answers are no ties: random values large enough to matter."""
    module = LLaVA.tiny(**settings)
    module.configure_model()
    if spread:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def written(module: LLaVA, folder: Path) -> dict[str, Tensor]:
    hf_folder(module).write(folder)
    return load_file(folder / "model.safetensors")


def difference(module: LLaVA, folder: Path, case: Path) -> str:
    """What `verify` finds, in this process: a fresh one costs 15 seconds, so only two tests start one."""
    export.write_case(module, hf_folder(module), case)
    return verify.compare(folder, load_file(case / "case.safetensors"), json.loads((case / "case.json").read_text()))


def same_state(one: LLaVA, other: LLaVA) -> bool:
    first: Any = one.state_dict()
    second: Any = other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


VARIANTS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "linear": {"connector": LinearConnector()},
    "cls kept, last layer, gelu": {
        "vision": replace(
            TINY["vision"], layer=-1, cls="keep", config={**(TINY["vision"].config or {}), "quick_gelu": False}
        )
    },
    "pad, llama 2": {"image": ImagePolicy(size=16, fit="pad"), "chat": "llama_2"},
    "squash, v0": {"image": ImagePolicy(size=16, fit="squash"), "chat": "llava_v0"},
    "plain": {"chat": "plain"},
    "tied": {"language": replace(TINY["language"], config={**TINY["language"].config, "tie_word_embeddings": True})},
    "opt": {"language": CausalLM(config=OPT.config)},
    "full vocabulary": {"language": replace(TINY["language"], config={**TINY["language"].config, "vocab_size": 259})},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_says_what_we_say_and_the_folder_comes_back_exactly(tmp_path: Path, variant: str) -> None:
    module = net(**VARIANTS[variant])
    tensors = written(module, tmp_path / "folder")
    assert difference(module, tmp_path / "folder", tmp_path / "case") == ""
    back = import_folder(tmp_path / "folder")
    assert isinstance(back, LLaVA)
    back.configure_model()
    if variant == "full vocabulary":
        rows = tensors["language_model.model.embed_tokens.weight"]
        embedding: Any = module.net.language.get_input_embeddings()
        assert rows.shape[0] == 320 and torch.equal(rows[:259], embedding.weight)
    else:
        assert same_state(module, back)
    assert back.processor.chat.name == module.processor.chat.name
    assert (back.processor.image, back.processor.max_length) == (module.processor.image, module.processor.max_length)
    # And once more from the net that came back.
    again = written(back.eval(), tmp_path / "again")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_the_layout_is_the_classic_one(tmp_path: Path) -> None:
    tensors = written(net(), tmp_path)
    layer = "vision_tower.vision_model.encoder.layers.1"
    assert {name for name in tensors if name.startswith(layer)} == {
        f"{layer}.{part}.{kind}"
        for kind in ("weight", "bias")
        for part in (
            *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "self_attn.out_proj"),
            *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        )
    }
    for name in (
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "multi_modal_projector.linear_1.weight",
        "multi_modal_projector.linear_2.bias",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
    ):
        assert name in tensors
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["model_type"] == "llava"
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    assert settings["patch_size"] == 8 and settings["num_additional_image_tokens"] == 1
    for name in ("preprocessor_config.json", "chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_linear_connector_is_exact_in_two_layers(tmp_path: Path, dtype: torch.dtype) -> None:
    module = net(connector=LinearConnector()).to(dtype)
    written(module, tmp_path)
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    visual = torch.randn(3, 4, 32, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(loaded.model.multi_modal_projector(visual), module.net.connector(visual))


def test_a_folder_that_transformers_wrote_itself_is_read(tmp_path: Path) -> None:
    """Its own layout since version 5, all blocks of the tower, layer -2."""
    module = net()
    folder = tmp_path / "folder"
    hf_folder(module).write(folder)
    config: Any = hf_folder(module).config
    config.vision_config.num_hidden_layers, config.vision_feature_layer = 3, -2
    grown = LlavaForConditionalGeneration(config)
    ours: Any = AutoModelForImageTextToText.from_pretrained(folder)
    grown.load_state_dict(ours.state_dict(), strict=False)
    grown.save_pretrained(folder)
    assert any(name.startswith("vision_tower.encoder.layers.2.") for name in load_file(folder / "model.safetensors"))
    back = import_folder(folder)
    back.configure_model()
    assert isinstance(back, LLaVA) and same_state(module, back)


def test_the_key_maps_are_one_to_one_on_every_tensor() -> None:
    for connector in (LinearConnector(), MlpConnector()):
        module = net(spread=False, connector=connector)
        config = {"projector_hidden_act": "linear" if isinstance(connector, LinearConnector) else "gelu"}
        state = module.state_dict()
        for key_map in (hf_llava.KEYS, llava_original.KEYS):
            theirs = list(key_map.to_theirs(state.items()))
            assert len(dict(theirs)) == len(theirs)
            back = dict(key_map.to_ours(theirs, config))
            assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def corruptions() -> dict[str, Any]:
    def rewrite(change: Any) -> Any:
        def corrupt(folder: Path) -> None:
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})

        return corrupt

    def settings(file: str, **values: Any) -> Any:
        def corrupt(folder: Path) -> None:
            found = json.loads((folder / file).read_text())
            found.get("image_processor", found).update(values)
            (folder / file).write_text(json.dumps(found))

        return corrupt

    name = "multi_modal_projector.linear_1.weight"
    return {
        "logits": rewrite(lambda tensors: tensors[name][0].add_(0.5)),
        "missing keys": rewrite(lambda tensors: tensors.pop(name)),
        "unexpected keys": rewrite(lambda tensors: tensors.update(more=torch.ones(1))),
        "logits: ": settings("config.json", vision_feature_layer=-2),
        "pixels": settings("processor_config.json", do_center_crop=False, size={"height": 16, "width": 16}),
        "tokens": lambda folder: (folder / "chat_template.jinja").write_text("<image>{{ messages[0]['role'] }}"),
    }


@pytest.mark.parametrize("found", corruptions())
def test_a_corrupted_folder_is_told_by_name(tmp_path: Path, found: str) -> None:
    module = net()
    written(module, tmp_path / "folder")
    corruptions()[found](tmp_path / "folder")
    assert difference(module, tmp_path / "folder", tmp_path / "case").startswith(found)


@pytest.mark.timeout(600)
def test_an_export_is_checked_in_a_fresh_process(tmp_path: Path) -> None:
    module = net()
    to = export.export_module(module, tmp_path / "made/folder")
    assert (to / "model.safetensors").is_file()
    assert [each.name for each in to.parent.iterdir()] == ["folder"]
    picture = export.drawing(20, 30)
    assert load(to).answer(picture, "What is it?") == Model(module).answer(picture, "What is it?") != ""
    with pytest.raises(ValueError, match="found files there, expected an empty or absent folder"):
        export.export_module(net(), to)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'logits: differ by 1'; echo a warning >&2; exit 1", "logits: differ by 1"),
        ("echo 'OSError: no such model' >&2; exit 1", "OSError: no such model"),
        ("kill -9 $$", "the process ended with -9"),
    ],
)
def test_a_difference_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    process = tmp_path / "python"
    process.write_text(f"#!/bin/sh\n{script}\n")
    process.chmod(0o755)
    monkeypatch.setattr(export.sys, "executable", str(process))
    to = tmp_path / "made/folder"
    to.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"differs from the net, so it was removed: {reason}"):
        export.export_module(net(), to)
    assert [each.name for each in to.parent.iterdir()] == ["folder"] and not any(to.iterdir())


@pytest.mark.parametrize("name", ["llama 3", "chatml", "lists, a blank behind the prompt", "a text of several tokens"])
def test_a_tokenizers_own_template_goes_along(tmp_path: Path, name: str) -> None:
    """With its ends and one begin token, whether it writes one (llama 3) or leaves it to the tokenizer."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|eot_id|>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATES[name][0]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    module = net(language=replace(TINY["language"], model=str(tmp_path / "tokenizer")), chat="tokenizer")
    written(module, tmp_path / "folder")
    assert difference(module, tmp_path / "folder", tmp_path / "case") == ""
    generation = json.loads((tmp_path / "folder/generation_config.json").read_text())
    end = TEMPLATES[name][2]
    token = tokenizer.get_vocab().get(end)
    assert generation["eos_token_id"] == ([2] if token in (None, 2) else [2, token])
    assert generation.get("stop_strings", []) == ([end] if token is None else [])
    back = import_folder(tmp_path / "folder")
    back.configure_model()
    assert isinstance(back, LLaVA) and same_state(module, back) and back.processor.chat.name == "tokenizer"
    again = written(back.eval(), tmp_path / "again")
    assert again and difference(back, tmp_path / "again", tmp_path / "case again") == ""


def test_what_transformers_has_no_place_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"connector.depth: found 3, expected 2"):
        hf_folder(net(spread=False, connector=MlpConnector(depth=3)))
    with pytest.raises(ValueError, match=r"image\.views: found 5, expected 1, all that transformers' LLaVA knows"):
        hf_folder(net(spread=False, image=ImagePolicy(size=16, fit="pad", views=5)))
    narrow = CausalLM(config={**(OPT.config or {}), "word_embed_proj_dim": 16})
    with pytest.raises(ValueError, match=r"word_embed_proj_dim: found 16, expected 32, the width that transf"):
        hf_folder(net(spread=False, language=narrow))
    with pytest.raises(ValueError, match=r"vision\.norm: found true, expected false"):
        hf_folder(net(spread=False, vision=replace(TINY["vision"], norm=True)))
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ValueError, match=r"found a LlamaForCausalLM, expected one of .*LlavaForConditionalGeneration"):
        import_folder(tmp_path)


def stage(**init_from: float) -> StageSettings:
    return StageSettings(name="instruct", init_from=init_from)


@pytest.mark.parametrize("prefix", ["model.mm_projector", "mm_projector", "base_model.model.model.mm_projector"])
@pytest.mark.parametrize("connector", [LinearConnector(), MlpConnector()])
def test_the_authors_projector_file_is_a_source(tmp_path: Path, prefix: str, connector: Any) -> None:
    shapes = {"": (32, 32)} if isinstance(connector, LinearConnector) else {".0": (32, 32), ".2": (32, 32)}
    tensors = {f"{prefix}{i}.weight": torch.randn(shape) for i, shape in shapes.items()}
    tensors |= {f"{prefix}{i}.bias": torch.randn(32) for i in shapes}
    torch.save(tensors, tmp_path / "mm_projector.bin")
    module = LLaVA.tiny(connector=connector, stage=stage(**{str(tmp_path / "mm_projector.bin"): 1.0}))
    module.configure_model()
    found = dict(module.net.connector.named_parameters())
    first = "linear" if isinstance(connector, LinearConnector) else "linear_1"
    assert torch.equal(found[f"{first}.weight"], next(iter(tensors.values())))
    assert {module.provenance[f"connector.{name}"] for name in found} == {"stage.init_from"}


def test_an_exported_folder_is_a_source(tmp_path: Path) -> None:
    module = net()
    hf_folder(module).write(tmp_path / "folder")
    next_stage = LLaVA.tiny(stage=stage(folder=1.0))
    next_stage.runs = str(tmp_path)
    next_stage.configure_model()
    assert same_state(module, next_stage)


def test_adapters_are_merged_on_export_and_folded_by_the_next_stage(tmp_path: Path) -> None:
    adapted = LLaVA.tiny(stage=StageSettings(name="instruct_lora"))
    adapted.configure_model()
    with torch.no_grad():
        for name, parameter in adapted.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    adapted.eval()
    written(adapted, tmp_path / "folder")
    assert adapted.lora is not None
    write_stage(
        tmp_path / "lora",
        adapted.trained_tensors(),
        stage="instruct_lora",
        settings={},
        init_from={},
        steps=1,
        lora_scale=adapted.lora.scale,
    )
    assert difference(adapted, tmp_path / "folder", tmp_path / "case") == ""
    plain = LLaVA.tiny(stage=StageSettings(name="instruct", train={}, init_from={"lora": 1.0}))
    plain.runs = str(tmp_path)
    plain.configure_model()
    imported = import_folder(tmp_path / "folder")
    imported.configure_model()
    assert isinstance(imported, LLaVA) and same_state(plain, imported)
    found = initial_tensors({"lora": 1.0}, tmp_path, {})
    assert len(found.adapted) == 14


def test_adapters_of_a_16_bit_net_are_merged_in_float32_and_compared_with_the_net_before(tmp_path: Path) -> None:
    small = replace(TINY["language"], dtype="bfloat16")
    adapted = LLaVA.tiny(language=small, stage=StageSettings(name="instruct_lora"))
    adapted.configure_model()
    with torch.no_grad():
        for name, parameter in adapted.net.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.02 if "lora_B" in name else 0.1))
    tensors = written(adapted.eval(), tmp_path / "folder")
    state, name = adapted.state_dict(), "language.model.layers.0.self_attn.q_proj"
    low, high = (state[f"{name}.lora_{each}.default.weight"].double() for each in "AB")
    exact = state[f"{name}.base_layer.weight"].double() + 2 * high @ low
    merged = tensors["language_model.model.layers.0.self_attn.q_proj.weight"]
    # Rounded once: half a unit of the last of 8 bits.
    assert merged.dtype == torch.bfloat16 and bool(((merged - exact).abs() <= 1.001 * 2**-8 * exact.abs()).all())
    with torch.no_grad():
        for parameter in (each for key, each in adapted.net.named_parameters() if "lora_B" in key):
            parameter.mul_(2)
    written(adapted, tmp_path / "other")
    assert difference(adapted, tmp_path / "other", tmp_path / "case") == ""
    # Twice the adapters are told from once.
    found = verify.compare(
        tmp_path / "folder",
        load_file(tmp_path / "case/case.safetensors"),
        json.loads((tmp_path / "case/case.json").read_text()),
    )
    assert found.startswith("logits: differ by")


def test_a_folder_says_nothing_of_the_machine_and_all_its_files_may_be_read(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    module = net(spread=False, language=replace(TINY["language"], model=str(tmp_path / "tokenizer")), max_length=777)
    mask = os.umask(0o022)
    try:
        written(module, tmp_path / "folder")
    finally:
        os.umask(mask)
    files = [each for each in (tmp_path / "folder").rglob("*") if each.is_file()]
    assert {each.stat().st_mode & 0o777 for each in files} == {0o644}
    told = {each.name: each.read_text() for each in files if each.suffix in (".json", ".jinja")}
    assert not [name for name, text in told.items() if str(tmp_path) in text or "name_or_path" in text]
    settings = json.loads(told["tokenizer_config.json"])
    assert (settings["model_max_length"], settings["padding_side"]) == (777, "left")


def test_questions_of_a_batch_that_are_padded_behind_are_told(tmp_path: Path) -> None:
    module = net()
    written(module, tmp_path / "folder")
    file = tmp_path / "folder/tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "padding_side": "right"}))
    assert difference(module, tmp_path / "folder", tmp_path / "case").startswith("a batch of 3: logits: differ by")


@pytest.mark.parametrize(
    ("dtype", "lora", "loaded", "compared"),
    [
        (torch.float32, False, 1, 1),
        (torch.float32, True, 1, 2),
        (torch.bfloat16, False, 2, 2),
    ],
)
def test_nets_are_compared_one_at_a_time_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, lora: bool, loaded: int, compared: int
) -> None:
    module = LLaVA.tiny(stage=StageSettings(name="instruct_lora") if lora else None)
    module.configure_model()
    written(module.to(dtype).eval(), tmp_path / "folder")
    nets: list[weakref.ref[Any]] = []
    rounds: list[float] = []
    load_net, says = LlavaForConditionalGeneration.from_pretrained, verify.logits_difference

    def watched(*arguments: Any, **settings: Any) -> Any:
        gc.collect()
        assert all(net() is None for net in nets), "the net of the first round is still in memory"
        found: Any = load_net(*arguments, **settings)
        nets.append(weakref.ref(found[0] if isinstance(found, tuple) else found))
        return found

    def counted(*arguments: Any) -> str:
        rounds.append(arguments[-1])
        return says(*arguments)

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", watched)
    monkeypatch.setattr(verify, "logits_difference", counted)
    assert difference(module, tmp_path / "folder", tmp_path / "case") == ""
    assert (len(nets), len(rounds)) == (loaded, compared)

"""Export and import of CogVLM: one folder in the public layout, whose code for transformers says what we say."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from lightning_mllm.architectures.cogvlm import TINY, CogVLM
from lightning_mllm.commands import ask
from lightning_mllm.contracts import Sample, TokenKind, Turn
from lightning_mllm.export import export
from lightning_mllm.export.export import hf_folder
from lightning_mllm.export.importing import import_folder
from lightning_mllm.inference import Model, load
from lightning_mllm.interop.cogvlm import KEYS
from lightning_mllm.interop.cogvlm.folder import TOKENIZER
from lightning_mllm.interop.cogvlm.remote import modeling_cogvlm
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.tokenizer import byte_tokenizer
from lightning_mllm.language.visual_expert import vision_mask
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.processing.image_in_memory import ImageInMemory
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.shared_positions import shared_positions
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.tower import TINY_TOWER
from tests.architectures.blip2s import built, compared, exported, same_state

LLAMA: dict[str, Any] = TINY["language"].config
CLIP, CLIP_CONFIG = replace(TINY_TOWER, cls="drop"), TINY_TOWER.config or {}
BIASED = {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "eva2": {"chat": "vicuna_v1", "decoding": {"answer": Decoding(max_new_tokens=5)}},
    "clip, fixed positions": {"vision": replace(CLIP, output_position_scale=3.0)},
    "clip, crop": {"vision": CLIP, "image": ImagePolicy(size=16, fit="crop")},
    "clip, quick gelu, layer -2": {
        "vision": replace(CLIP, layer=-2, config={**(CLIP.config or {}), "quick_gelu": True})
    },
    "experts every second block": {"language": VisualExpertLM(config=LLAMA, every=2)},
    "experts of the ffn, biases, tied": {"language": VisualExpertLM(config=BIASED, parts=("ffn",))},
    "groups of heads": {
        "language": VisualExpertLM(config={**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2}),
        "chat": "cogvlm_chat",
    },
}
VISUAL = {"input_layernorm", "post_attention_layernorm", "attention.query_key_value", "attention.dense"}
RED, GREEN = Image.new("RGB", (20, 30), (255, 0, 0)), Image.new("RGB", (30, 20), (0, 200, 60))


@pytest.fixture(autouse=True, scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the code of a folder before it runs it: not into the user's cache."""
    with pytest.MonkeyPatch.context() as patched:
        cache = str(tmp_path_factory.mktemp("modules"))
        patched.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", cache)
        patched.setattr(sys, "path", list(sys.path))
        yield


def net(**settings: Any) -> Any:
    return built(CogVLM, spread=0.2, **settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_says_what_we_say_and_the_folder_comes_back_exactly(tmp_path: Path, variant: str) -> None:
    module = net(**VARIANTS[variant])
    found = exported(module, tmp_path)
    assert found.difference == ""
    back = found.back
    assert isinstance(back, CogVLM) and same_state(module, back)
    own, other = module.processor, back.processor
    for what in (
        "image",
        "max_length",
        "vectors_per_image",
        "image_boundary",
        "image_id",
        "pad_id",
        "image_boundary",
        "prefix",
    ):
        assert getattr(own, what) == getattr(other, what), what
    assert own.chat.name == other.chat.name and back.decoding == module.decoding
    hf_folder(back).write(tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == found.tensors.keys()
    assert all(torch.equal(again[each], found.tensors[each]) for each in again)
    for name in ("config.json", "processor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "folder" / name).read_text() == (tmp_path / "again" / name).read_text()


def test_names_on_disk_are_those_of_the_public_checkpoints(tmp_path: Path) -> None:
    module = net(chat="cogvlm_vqa")
    hf_folder(module).write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    block, tower = "model.layers.1", "model.vision.transformer.layers.1"
    assert {name for name in tensors if ".layers.0." not in name} == {
        *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.vision.boi", "model.vision.eoi"),
        *(f"{block}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")),
        *(
            f"{block}.{part}.weight"
            for e in ("language", "vision")
            for part in (
                *(f"self_attn.{e}_expert_query_key_value", f"self_attn.{e}_expert_dense"),
                *(f"mlp.{e}_mlp.{each}_proj" for each in ("gate", "up", "down")),
            )
        ),
        *(f"model.vision.patch_embedding.{e}" for e in ("cls_embedding", "position_embedding.weight", "proj.weight")),
        "model.vision.patch_embedding.proj.bias",
        *(f"{tower}.{part}.{kind}" for part in (*VISUAL, "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")),
        *(f"model.vision.linear_proj.{e}.weight" for e in ("linear_proj", "gate_proj", "norm1", "dense_h_to_4h")),
        *("model.vision.linear_proj.dense_4h_to_h.weight", "model.vision.linear_proj.norm1.bias"),
    }
    assert tensors["model.vision.patch_embedding.cls_embedding"].shape == (1, 32)
    fused, parts = tensors["model.layers.0.self_attn.vision_expert_query_key_value.weight"], module.net.language.model
    parts = [getattr(parts.layers[0].self_attn, f"{each}_proj").vision.weight for each in "qkv"]
    assert torch.equal(fused, torch.cat(parts))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["CogVLMForCausalLM"] and config["template_version"] == "vqa"
    sizes = {"hidden_size": 32, "num_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48, "num_positions": 5}
    assert sizes.items() <= config["vision_config"].items()
    for place in config["auto_map"].values():
        assert (tmp_path / f"{place.split('.')[0]}.py").is_file()


def test_an_expert_that_is_not_there_is_the_language_models(tmp_path: Path) -> None:
    module = net(language=VisualExpertLM(config=LLAMA, every=2, parts=("qkv", "ffn")))
    hf_folder(module).write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    same = {
        name
        for name, tensor in tensors.items()
        if "language_" in name and torch.equal(tensor, tensors[name.replace("language_", "vision_")])
    }
    assert same == {name for name in tensors if "language_" in name and (".1." in name or "dense" in name)}


def test_code_that_travels_needs_torch_and_transformers_alone() -> None:
    files = hf_folder(net()).code
    assert len(files) == 4
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops = {each.name.split(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                tops = {(node.module or "").split(".")[0]}
                assert not node.level or (file.parent / f"{node.module}.py") in files
                tops = set() if node.level else tops
            else:
                continue
            assert tops <= {"torch", "transformers"} | sys.stdlib_module_names, (file, node.lineno)


def question(identity: str, text: str, *images: Image.Image) -> Sample:
    turns = (Turn(role="user", text=text),)
    return Sample(id=identity, turns=turns, images=tuple(ImageInMemory(each) for each in images))


SAMPLES = [
    question("one", "<image>\nWhat is it?", RED),
    question("two", "<image>\n<image>\nWhich is red?", RED, GREEN),
    question("none", "Hello"),
]


def content(sample: Sample) -> list[dict[str, Any]]:
    shown: list[Any] = [{"type": "image", "image": each.image} for each in sample.images]  # pyright: ignore
    return [*shown, {"type": "text", "text": sample.turns[0].text.replace("<image>\n", "")}]


# Images with a line end between them, and images that touch.
@pytest.mark.parametrize("variant", ["eva2", "groups of heads"])
def test_rows_of_several_lengths_and_images_are_read_alike(tmp_path: Path, variant: str) -> None:
    module = net(**VARIANTS[variant])
    hf_folder(module).write(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    processor: Any = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    own = module.processor
    batch = own.collate([own.encode(each, generate=True) for each in SAMPLES], padding="left")
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content(each)}] for each in SAMPLES],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    assert [len(each) for each in inputs["images"]] == [1, 2, 0]
    assert inputs["token_type_ids"].tolist() == (batch.kinds != TokenKind.TEXT).long().tolist()
    real = batch.segments > 0
    assert torch.equal(inputs["input_ids"][real], batch.tokens[real]) and torch.equal(
        inputs["attention_mask"] > 0, real
    )
    with torch.no_grad():
        found, expected = model(**inputs).logits[real], module.net.logits(batch)[real]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    alone = [own.collate([own.encode(each, generate=True)]) for each in SAMPLES]
    for beams in (1, 3):
        settings = {"do_sample": False, "num_beams": beams, "max_new_tokens": 6}
        cached = model.generate(**inputs, **settings)
        assert torch.equal(cached, model.generate(**inputs, **settings, use_cache=False))
        answers = module.generate(batch, Decoding(max_new_tokens=6, num_beams=beams))
        for row, answer in zip(cached[:, inputs["input_ids"].shape[1] :].tolist(), answers, strict=True):
            assert (
                row[: len(answer)] == answer != []
                and (row[len(answer) :] or own.stop_rule.tokens)[0] in own.stop_rule.tokens
            )
        assert answers == [module.generate(each, Decoding(max_new_tokens=6, num_beams=beams))[0] for each in alone]


def test_experts_and_positions_follow_from_types_as_from_kinds() -> None:
    begin, image, end = (int(kind) for kind in (TokenKind.IMAGE_BEGIN, TokenKind.IMAGE, TokenKind.IMAGE_END))
    for vectors in (1, 4):
        one = [begin, *[image] * vectors, end]
        rows = [[0, *one, 0, 0], [*one, *one, 0], [0, 0, *one], [0, *one, 0, *one, 0], [0, 0, 0]]
        longest = max(map(len, rows))
        kinds = torch.tensor([[0] * (longest - len(row)) + row for row in rows], dtype=torch.uint8)
        real = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        types, block = (kinds != 0).long(), vectors + 2
        place = modeling_cogvlm.block_positions(types, block)
        assert torch.equal((place >= 0) & (place < block - 1), vision_mask(kinds))
        assert torch.equal(modeling_cogvlm.shared_positions(types, real, block), shared_positions(kinds, real.int()))
        # The rule of the public checkpoints, where no two images touch.
        public = types.bool() & torch.nn.functional.pad(types[:, 1:], (0, 1)).bool()
        apart = torch.tensor([True, False, True, True, True])
        assert torch.equal(vision_mask(kinds)[apart], public[apart])


def test_images_that_are_not_the_tokens_are_refused(tmp_path: Path) -> None:
    hf_folder(net()).write(tmp_path)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True)
    processor: Any = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    inputs = processor(images=[RED], text="<image>What is it?")
    with pytest.raises(ValueError, match=r"found \[6\] tokens of images in the rows, expected \[12\]"):
        model(**{**inputs, "images": [[*inputs["images"][0], *inputs["images"][0]]]})
    with pytest.raises(ValueError, match="found 2 <image> marks, expected 1"):
        processor(images=[RED], text="<image> or <image>")
    with pytest.raises(ValueError, match="position_ids: found none behind a cache"):
        model(**{**inputs, "past_key_values": model(**inputs, use_cache=True).past_key_values})


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*")
def test_it_can_be_trained_there(tmp_path: Path) -> None:
    module = net()
    hf_folder(module).write(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).train()
    processor: Any = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    inputs = processor(images=RED, text="<image>What is it?")
    labels = inputs["input_ids"].masked_fill(inputs["token_type_ids"] == 1, -100)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    last = "model.layers.1"
    unused_parameters = (f"{last}.mlp.vision_mlp", f"{last}.self_attn.vision_expert_dense")
    for name, parameter in model.named_parameters():
        assert bool(parameter.grad.any()) != name.startswith(unused_parameters), name
    model.gradient_checkpointing_enable()
    assert torch.equal(model(**inputs, labels=labels).loss, loss)


def foreign(marker: Path) -> str:
    return f"from pathlib import Path\n\nPath({str(marker)!r}).write_text('run')\n"


@pytest.mark.parametrize("change", ["changed", "more", "missing", "elsewhere"])
def test_only_code_of_the_package_is_run(tmp_path: Path, change: str) -> None:
    module, folder, marker = net(), tmp_path / "folder", tmp_path / "marker"
    layout = hf_folder(module)
    layout.write(folder)
    export.write_case(module, layout, tmp_path / "case")
    code, config = folder / "modeling_cogvlm.py", folder / "config.json"
    if change == "changed":
        code.write_text(foreign(marker) + code.read_text())
    elif change == "more":
        (folder / "more").mkdir()
        (folder / "more/code.py").write_text(foreign(marker))
    elif change == "missing":
        code.unlink()
    else:
        config.write_text(config.read_text().replace("modeling_cogvlm.Cog", "owner/name--modeling_cogvlm.Cog"))
    expected = {
        "changed": "code: modeling_cogvlm.py differs from the package's",
        "more": "code: found ['configuration_cogvlm.py', 'modeling_cogvlm.py', 'more/code.py',",
        "missing": "code: found ['configuration_cogvlm.py', 'processing_cogvlm.py',",
        "elsewhere": "code: config.json names 'owner/name--modeling_cogvlm.CogVLMForCausalLM', expected one of",
    }
    assert compared(tmp_path).startswith(expected[change]) and not marker.exists()


@pytest.mark.parametrize("found", ["tokens", "pixels", "logits", "missing keys"])
def test_a_corrupted_folder_is_told_by_name(tmp_path: Path, found: str) -> None:
    module, folder = net(), tmp_path / "folder"
    layout = hf_folder(module)
    layout.write(folder)
    export.write_case(module, layout, tmp_path / "case")
    settings, tensors = folder / "processor_config.json", load_file(folder / "model.safetensors")
    known = json.loads(settings.read_text())
    if found == "tokens":
        settings.write_text(json.dumps({**known, "num_image_tokens": 5}))
    elif found == "pixels":
        size = {"shortest_edge": 16}
        known["image_processor"] |= {"do_center_crop": True, "size": size, "crop_size": {"height": 16, "width": 16}}
        settings.write_text(json.dumps(known))
    elif found == "logits":
        tensors["model.vision.eoi"] += 0.5
    else:
        del tensors["model.vision.eoi"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert compared(tmp_path).startswith(found)


def public(module: Any, folder: Path, marker: Path) -> None:
    """A folder as the authors wrote theirs: their fields, code that we know nothing of, a constant among tensors."""
    folder.mkdir()
    tensors = dict(KEYS.to_theirs(module.state_dict().items()))
    for i in range(2):
        tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {
        "architectures": ["CogVLMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_cogvlm.CogVLMConfig",
            "AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM",
        },
        **{name: LLAMA[name] for name in LLAMA if name not in ("model_type", "num_key_value_heads")},
        "intermediate_size": 48,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "template_version": "base",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vision_config": {
            **{"dropout_prob": 0.0, "hidden_act": "gelu", "hidden_size": 32, "image_size": 16, "in_channels": 3},
            **{"intermediate_size": 48, "layer_norm_eps": 1e-6, "num_heads": 2, "num_hidden_layers": 2},
            **{"num_positions": 5, "patch_size": 8},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_cogvlm", "modeling_cogvlm"):
        (folder / f"{name}.py").write_text(foreign(marker))


def test_a_public_checkpoint_is_read_and_its_code_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = net(language=VisualExpertLM(config={**LLAMA, "intermediate_size": 48}), chat="cogvlm_base")
    folder, marker = tmp_path / "cogvlm-base", tmp_path / "marker"
    public(module, folder, marker)
    with pytest.raises(ValueError, match=f"tokenizer: found {TOKENIZER!r}"):
        import_folder(folder)
    byte_tokenizer().save_pretrained(folder)
    back = load(folder).module
    assert isinstance(back, CogVLM) and same_state(module, back)
    assert back.processor.chat.name == "cogvlm_base" and back.processor.image == module.processor.image
    RED.save(tmp_path / "red.png")
    ask.main([str(folder), "What is it?", "--image", str(tmp_path / "red.png")])
    assert capsys.readouterr().out.strip() == Model(module).answer(RED, "What is it?")
    later = CogVLM.tiny(
        language=VisualExpertLM(config={**LLAMA, "intermediate_size": 48}),
        stage=StageSettings(name="chat", init_from={"cogvlm-base": 1.0}),
    )
    later.runs = str(tmp_path)
    later.configure_model()
    assert same_state(module, later) and not marker.exists()


def test_adapters_are_merged_on_export(tmp_path: Path) -> None:
    adapted = CogVLM.tiny(stage=StageSettings(name="chat_lora"))
    adapted.configure_model()
    with torch.no_grad():
        for name, parameter in adapted.net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    found = exported(adapted.eval(), tmp_path)
    assert found.difference == ""
    assert same_state(adapted, found.back) is False and not any("lora" in name for name in found.back.state_dict())


def refusals() -> dict[str, dict[str, Any]]:
    def language(**config: Any) -> dict[str, Any]:
        return {"language": VisualExpertLM(config={**LLAMA, **config})}

    return {
        "language.model_type: found 'mistral', expected 'llama'": language(model_type="mistral"),
        "language.head_dim: found 8, expected 16": language(head_dim=8),
        "language.rope_parameters.rope_type: found 'linear', expected 'default'": language(
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
        ),
        "language.attention_bias: found True, expected False": language(num_key_value_heads=1, attention_bias=True),
        "vision.cls: found keep, expected drop": {"vision": TINY_TOWER},
    }


@pytest.mark.parametrize("reason", refusals())
def test_what_the_layout_has_no_place_for_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=f"{reason}, all that CogVLM's layout knows"):
        hf_folder(net(**refusals()[reason]))


@pytest.mark.timeout(600)
def test_an_export_is_checked_in_a_fresh_process(tmp_path: Path) -> None:
    module = net()
    to = export.export_module(module, tmp_path / "made/folder")
    assert [each.name for each in to.parent.iterdir()] == ["folder"]
    picture = export.drawing(20, 30)
    assert load(to).answer(picture, "What is it?") == Model(module).answer(picture, "What is it?") != ""

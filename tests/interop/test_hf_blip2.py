"""Export and import of BLIP-2 and InstructBLIP: transformers says what we say, and folders come back exactly."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Blip2ForImageTextRetrieval

from lightning_mllm.architectures.blip2 import TINY, Blip2
from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.commands import ask
from lightning_mllm.commands import export as export_command
from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.export import checks, export, verify
from lightning_mllm.export.export import hf_folder
from lightning_mllm.export.importing import import_folder
from lightning_mllm.inference import Model, load
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.tokenizer import byte_tokenizer
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.limits import TextLimits
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.files import BESIDE
from tests.architectures.blip2s import EVA, INSTRUCTED, LANGUAGES, NORM, OPT, built, compared, eva, exported, same_state
from tests.export.in_process import check_in_this_process
from tests.interop.tables import folder_format
from tests.training.runs import fit, settings

LIMITS = TextLimits(prompt=60, answer=40, cut="right")
FULL = replace(OPT, config={**(OPT.config or {}), "vocab_size": 259})
NETS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "blip2, opt": (Blip2, eva("opt", text_limits=LIMITS, max_length=300)),
    "blip2, opt, captions": (Blip2, eva("opt", chat="blip2_caption")),
    "blip2, opt, full vocabulary": (Blip2, eva("opt") | {"language": FULL}),
    "blip2, opt, a tower of 16 bits": (Blip2, eva("opt") | {"vision": replace(EVA, dtype="bfloat16")}),
    "blip2, llama": (Blip2, eva("llama")),
    "blip2, t5": (Blip2, eva("t5")),
    "blip2, flan-t5": (Blip2, eva("flan-t5")),
    "instructblip, llama": (Blip2, INSTRUCTED | eva("llama", decoding={"answer": Decoding(max_new_tokens=5)})),
    "instructblip, flan-t5": (Blip2, INSTRUCTED | eva("flan-t5", reader_length=100)),
    "representation": (Blip2Representation, eva(max_length=48, retrieval_length=50)),
}


def net(name: str, **changes: Any) -> Any:
    kind, settings = NETS[name]
    return built(kind, **{**settings, **changes})


@pytest.mark.parametrize("name", NETS)
def test_transformers_says_what_we_say_and_the_folder_comes_back_exactly(tmp_path: Path, name: str) -> None:
    module = net(name)
    found = exported(module, tmp_path)
    assert found.difference == ""
    back = found.back
    assert type(back) is type(module)
    if "full" in name:
        rows = found.tensors["language_model.model.decoder.embed_tokens.weight"]
        assert rows.shape[0] == 320 and torch.equal(rows[:259], module.net.language.get_input_embeddings().weight)
    else:
        assert same_state(module, back)
    own, other = module.processor, back.processor
    for what in (
        "chat.name",
        "image",
        "max_length",
        "text_limits",
        "seq2seq",
        "vectors_per_image",
        "image_boundary",
        "prefix",
    ):
        one, two = own, other
        for part in what.split("."):
            one, two = getattr(one, part), getattr(two, part)
        assert one == two, what
    assert getattr(own.query_text, "max_length", 0) == getattr(other.query_text, "max_length", 0)
    assert getattr(back, "search", own).max_length == getattr(module, "search", own).max_length
    assert back.decoding == module.decoding and back.net.ln_vision.eps == module.net.ln_vision.eps
    # And once more from the net that came back.
    again = exported(back, tmp_path / "again")
    assert again.difference == "" and again.tensors.keys() == found.tensors.keys()
    assert all(torch.equal(again.tensors[each], found.tensors[each]) for each in again.tensors)


def test_names_on_disk_are_those_of_the_published_folders(tmp_path: Path) -> None:
    layers = {f"qformer.encoder.layer.{i}.{part}.dense.weight" for i in range(3) for part in ("intermediate", "output")}
    tensors = exported(net("instructblip, llama"), tmp_path / "one").tensors
    assert layers | {
        "query_tokens",
        "vision_model.embeddings.patch_embedding.bias",
        "vision_model.encoder.layers.1.self_attn.qkv.bias",
        "vision_model.post_layernorm.weight",
        "qformer.embeddings.word_embeddings.weight",
        "qformer.embeddings.layernorm.weight",
        "qformer.encoder.layer.2.crossattention.output.LayerNorm.bias",
        "language_projection.weight",
        "language_model.model.layers.0.mlp.up_proj.weight",
        "language_model.lm_head.weight",
    } <= set(tensors)
    assert not tensors["vision_model.encoder.layers.1.self_attn.qkv.bias"][32:64].any()
    names = {path.name for path in (tmp_path / "one/folder").iterdir()}
    assert {"qformer_tokenizer", "preprocessor_config.json", "tokenizer.json", "generation_config.json"} <= names
    tensors = exported(net("blip2, opt"), tmp_path / "two").tensors
    assert {"qformer.layernorm.weight", "language_model.model.decoder.embed_tokens.weight"} <= set(tensors)
    assert "language_model.lm_head.weight" not in tensors, "tied"


def test_an_answer_ends_where_ours_does(tmp_path: Path) -> None:
    """The language model inside has settings of its own, and generates by them."""
    module = net("blip2, opt")
    hf_folder(module).write(tmp_path)
    model: Any = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path)
    assert len(module.processor.stop_rule.tokens) == 2, "the end of the line, and of the text"
    assert model.language_model.generation_config.eos_token_id == module.processor.stop_rule.tokens
    assert model.generation_config.eos_token_id == module.processor.stop_rule.tokens


@pytest.mark.parametrize(("name", "tied"), [("blip2, t5", True), ("blip2, flan-t5", False)])
def test_files_say_whether_the_head_is_tied(tmp_path: Path, name: str, tied: bool) -> None:
    hf_folder(net(name)).write(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert text.get("tie_word_embeddings", True) == tied and text["dense_act_fn"] == "gelu"
    assert ("language_model.lm_head.weight" not in load_file(tmp_path / "model.safetensors")) == tied


def test_the_processor_writes_the_same_for_a_plain_text(tmp_path: Path) -> None:
    """As the cards of the published folders call it: `processor(images, text)`."""
    module = net("instructblip, llama")
    hf_folder(module).write(tmp_path)
    processor: Any = AutoProcessor.from_pretrained(tmp_path)
    picture = export.drawing(16, 16)
    for asked in ("Red?", "Which colour?"):
        inputs = processor(images=picture, text=asked, return_tensors="pt")
        turn = replace(export.question(picture).turns[0], text=f"<image>{asked}")
        row = module.processor.encode(replace(export.question(picture), turns=(turn,)), generate=True)
        image = processor.tokenizer.get_vocab()["<image>"]
        assert torch.equal(inputs["input_ids"][0], row.tokens.masked_fill(row.kinds == 1, image))
        assert torch.equal(inputs["qformer_input_ids"][0], row.query_text)


def test_the_processor_pads_a_q_formers_texts_on_the_wrong_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, transformers pads them as a Q-Former reads them: `QUERY_PADDING` and `processor_inputs` may go."""
    module = net("instructblip, llama")
    monkeypatch.setattr(export, "verify", lambda *_: None)
    with pytest.warns(UserWarning, match=r"folder: for a batch .* processor\.qformer_tokenizer\(texts, padding=True\)"):
        export.export_module(module, tmp_path / "folder")
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "folder")
    texts, picture = ["Red?", "Which colour is it?"], export.drawing(16, 16)
    raw = processor(images=[picture] * 2, text=texts, padding=True, return_tensors="pt")["qformer_attention_mask"]
    right = checks.processor_inputs(processor, [picture] * 2, texts)["qformer_attention_mask"]
    short = int(right[0].sum())
    assert short < right.shape[1] and right[0, :short].all() and not right[0, short:].any()
    assert raw[0, -short:].all() and not raw[0, :-short].any()
    for name in ("instructblip, flan-t5", "blip2, opt"):
        assert hf_folder(net(name)).advice == ""


def corruptions() -> dict[str, tuple[str, Any]]:
    def rewrite(name: str, change: Any) -> Any:
        def corrupt(folder: Path) -> None:
            tensors = load_file(folder / "model.safetensors")
            change(tensors, name)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})

        return corrupt

    def edit(file: str, part: str, **values: Any) -> Any:
        def corrupt(folder: Path) -> None:
            found = json.loads((folder / file).read_text())
            (found[part] if part else found).update(values)
            (folder / file).write_text(json.dumps(found))

        return corrupt

    def louder(tensors: Any, name: str) -> None:
        tensors[name].mul_(1.5)

    def turned(tensors: Any, name: str) -> None:
        tensors[name].copy_(tensors[name].flip(0))

    cropped = {"do_center_crop": True, "size": {"shortest_edge": 16}}
    projection = "language_projection.weight"
    return {
        "logits": ("instructblip, llama", rewrite(projection, louder)),
        "logits: ": ("blip2, flan-t5", edit("config.json", "text_config", dense_act_fn="relu")),
        "logits: differ": ("representation", rewrite("itm_head.weight", louder)),
        "logits: differ by": (
            "representation",
            rewrite("text_projection.weight", turned),
        ),
        "missing keys": ("blip2, opt", rewrite(projection, lambda tensors, name: tensors.pop(name))),
        "unexpected keys": ("blip2, opt", rewrite("more", lambda t, name: t.update({name: torch.ones(1)}))),
        "tokens": ("blip2, opt", edit("processor_config.json", "", num_query_tokens=3)),
        "the Q-Former's tokens": ("instructblip, llama", lambda folder: byte_tokens(folder / "qformer_tokenizer")),
        "pixels": ("representation", edit("processor_config.json", "image_processor", **cropped)),
    }


def byte_tokens(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("found", corruptions())
def test_a_corrupted_folder_is_told_by_name(tmp_path: Path, found: str) -> None:
    name, corrupt = corruptions()[found]
    module = net(name)
    layout = hf_folder(module)
    layout.write(tmp_path / "folder")
    export.write_case(module, layout, tmp_path / "case")
    corrupt(tmp_path / "folder")
    assert compared(tmp_path).startswith(found)


def test_what_the_retrieval_class_cannot_hold_is_kept_beside(tmp_path: Path) -> None:
    module = net("representation")
    hf_folder(module).write(tmp_path / "folder")
    beside = load_file(tmp_path / "folder" / BESIDE)
    assert set(beside) == {
        *("heads.temperature", "heads.bias"),
        *(f"heads.{part}.{kind}" for part in ("transform", "norm") for kind in ("weight", "bias")),
    }
    # As a source of another stage, with what stands beside it; and as the folder of somebody else, without.
    stage = StageSettings(name="retrieval", init_from={"folder": 1.0})
    again = Blip2Representation.tiny(**eva(stage=stage))
    again.runs = str(tmp_path)
    again.configure_model()
    assert same_state(module, again) and set(again.provenance.values()) == {"stage.init_from"}
    (tmp_path / "folder" / BESIDE).unlink()
    foreign = import_folder(tmp_path / "folder")
    foreign.configure_model()
    fresh = {name for name, source in foreign.provenance.items() if source == "fresh"}
    assert fresh == set(beside)


@pytest.mark.parametrize("name", ["blip2, opt", "representation", "instructblip, flan-t5"])
def test_a_folder_that_transformers_wrote_itself_is_read(tmp_path: Path, name: str) -> None:
    module = net(name)
    hf_folder(module).write(tmp_path)
    model = getattr(transformers, folder_format(module).hf_class).from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    (tmp_path / "lightning_mllm.json").unlink()
    back = import_folder(tmp_path)
    back.configure_model()
    assert same_state(module, back.eval())
    assert isinstance(model, Blip2ForImageTextRetrieval) == (name == "representation")
    if name.startswith("instructblip"):
        # Released blip2_t5_instruct.py.
        assert back.processor.text_limits == TextLimits(prompt=128, answer=256, cut="left")


def test_what_transformers_has_no_place_for_is_refused() -> None:
    with pytest.raises(ValueError, match="vision: found a VisionTower, expected an EVA tower"):
        hf_folder(built(Blip2))
    with pytest.raises(ValueError, match="chat: found the template 'vicuna_v1', expected one that puts an image"):
        hf_folder(net("blip2, llama", chat="vicuna_v1"))
    narrow = replace(OPT, config={**(OPT.config or {}), "word_embed_proj_dim": 16})
    with pytest.raises(ValueError, match=r"language\.word_embed_proj_dim: found 16, expected 32"):
        hf_folder(net("blip2, opt", language=narrow))
    with pytest.raises(ValueError, match=r"image\.views: found 5, expected 1, all that transformers' BLIP-2 knows"):
        hf_folder(net("blip2, llama", image=ImagePolicy(size=16, fit="squash", views=5)))


@pytest.mark.parametrize(("reader", "kind"), [(None, "Blip2"), ("", "InstructBlip")])
def test_the_class_of_a_folder_is_the_one_that_reads_as_the_net_does(reader: str | None, kind: str) -> None:
    """A Q-Former fine-tuned on questions of VQA reads them, and so has no place in transformers' BLIP-2."""
    for language in ("opt", "llama"):
        module = built(Blip2, **eva(language, reader=reader))
        assert hf_folder(module).config.architectures == [f"{kind}ForConditionalGeneration"]


def test_another_epsilon_is_noted_and_held_to_the_same_tolerance(tmp_path: Path) -> None:
    """transformers has 1e-6 behind the encoder, the released code 1e-5: the smaller its vectors, the more it shows."""
    module = net("blip2, opt", ln_vision=LayerNormConnector(eps=1e-5))
    with torch.no_grad():
        for parameter in module.net.vision.parameters():
            parameter.mul_(30)
    found = exported(module, tmp_path / "large")
    assert found.difference == "" and found.back.net.ln_vision.eps == 1e-5
    quiet = net("blip2, opt", ln_vision=LayerNormConnector(eps=1e-5))
    with torch.no_grad():
        for name, parameter in quiet.net.vision.named_parameters():
            parameter.mul_(0.02 if name in ("cls_token", "pos_embed", "patch_embed.weight", "patch_embed.bias") else 0)
    found = exported(quiet, tmp_path / "small")
    assert found.difference.startswith("logits: differ by")
    assert (
        "ln_vision.eps is 1e-05" in hf_folder(quiet).caveat
        and hf_folder(module).caveat
        and not hf_folder(net("blip2, opt")).caveat
    )


@pytest.mark.timeout(600)
def test_an_export_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh process: tests/interop/test_hf_llava.py."""
    check_in_this_process(monkeypatch)
    module = net("instructblip, flan-t5")
    to = export.export_module(module, tmp_path / "made/folder")
    assert [each.name for each in to.parent.iterdir()] == ["folder"]
    picture = export.drawing(20, 30)
    assert load(to).answer(picture, "What is it?") == Model(module).answer(picture, "What is it?")
    quiet = net("blip2, opt", ln_vision=LayerNormConnector(eps=0.5))
    with pytest.raises(ValueError, match=r"logits: differ by .*; ln_vision.eps is 0.5, and transformers has"):
        export.export_module(quiet, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def settings_of(spec: Any) -> dict[str, Any]:
    """A part as YAML writes it."""
    kind = type(spec)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": asdict(spec)}


@pytest.mark.parametrize("name", ["blip2, opt", "blip2, flan-t5", "instructblip, llama", "instructblip, flan-t5"])
def test_a_folder_is_used_as_the_users_of_stock_classes_do(tmp_path: Path, name: str) -> None:
    module = net(name)
    hf_folder(module).write(tmp_path)
    kind = "Blip2" if name.startswith("blip2") else "InstructBlip"
    processor: Any = getattr(transformers, f"{kind}Processor").from_pretrained(tmp_path)
    model: Any = getattr(transformers, f"{kind}ForConditionalGeneration").from_pretrained(tmp_path)
    size = module.processor.image.size
    picture, question = export.drawing(size, size), "What is it?"
    inputs = processor(images=picture, text=question, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=8)
    said = processor.batch_decode(written, skip_special_tokens=True)[0].strip()
    answer = Model(module).answer(picture, question, Decoding(max_new_tokens=8))
    assert answer and said.endswith(answer)


def test_a_trained_run_is_exported_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(folder: Path, case: Path, _: object, snippet: str) -> dict[str, Any]:
        facts, figures = json.loads((case / "case.json").read_text()), {}
        assert verify.compare(folder, load_file(case / "case.safetensors"), facts, figures) == ""
        return {**figures, "printed": verify.printed(snippet, folder)}

    # In this process: a fresh one costs many seconds.
    monkeypatch.setattr(export, "verify", check)
    run, stage = tmp_path / "runs/tiny/instruct", settings("instruct", lr=1e-3)
    fit(run, stage=stage, data={"steps": 2}, build=lambda given: Blip2.tiny(**INSTRUCTED | eva("llama"), stage=given))
    model = {
        "class_path": f"{Blip2.__module__}.Blip2",
        "init_args": {
            "vision": settings_of(EVA),
            "qformer": asdict(TINY["qformer"]),
            "language": settings_of(LANGUAGES["llama"]),
            "ln_vision": asdict(NORM),
            "reader": "",
            "chat": "instructblip",
            "text_limits": asdict(INSTRUCTED["text_limits"]),
        },
    }
    config = {"model": model, "stage": {"name": "instruct", "init_from": {}}, "runs": str(tmp_path / "runs")}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    export_command.main([str(tmp_path / "runs/tiny"), "--to", str(tmp_path / "folder")])
    export.drawing(20, 30).save(tmp_path / "picture.png")
    capsys.readouterr()
    for model_of in ("runs/tiny", "folder"):
        ask.main([str(tmp_path / model_of), "What is it?", "--image", str(tmp_path / "picture.png")])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second

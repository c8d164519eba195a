"""What an export may be besides merged float32 weights: other numbers, adapters alone, our own layout; its card."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load_file, save_file

from lightning_mllm.architectures.llava import TINY, LLaVA
from lightning_mllm.architectures.sphinx import TINY as TINY_SPHINX
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.cli import main
from lightning_mllm.export import checks, export, verify, verify_own_layout
from lightning_mllm.export.adapter import AdapterFolder
from lightning_mllm.export.case import exact_logits, fitted, write_case
from lightning_mllm.export.own_layout import OwnFolder
from lightning_mllm.export.record import Origin, is_export_of
from lightning_mllm.inference import load, load_apart
from lightning_mllm.language.lora import Lora
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.stage_weights import write_stage

LORA = {"r": 4, "alpha": 8}
Case = tuple[Path, dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]


def data_uri(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (24, 30), colour).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def run(folder: Path, module: MultimodalModule, init_args: dict[str, Any], name: str) -> Path:
    """A finished and tested run of one stage, as `mllm run` leaves it."""
    module.configure_model()
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "lora_B" in key else 0.05))
    stage, lora = folder / name, module.lora
    row = {"part": "language", "parameters": 10, "trained": True, "lr": 1e-3, "weight_decay": 0.0, "dtype": "float32"}
    tensors = dict(module.trained_tensors()) if lora else dict(module.net.state_dict())
    how: dict[str, Any] = {
        "stage": name,
        "init_from": {},
        "steps": 3,
        "lora_scale": None if lora is None else lora.scale,
    }
    write_stage(stage, tensors, settings={"seconds": 4.0, "freeze_table": [row]}, **how)
    path = f"{type(module).__module__}.{type(module).__qualname__}"
    source = {
        "class_path": "data_modules.sources.CocoCaptions",
        "init_args": {"annotations": "gone.json", "images": "x"},
    }
    data = {"class_path": "data_modules.module.InstructionDataModule", "init_args": {"train": {"mine": source}}}
    settings = {
        "model": {"class_path": path, "init_args": init_args},
        "stage": {"name": name, "init_from": {}, **({} if lora is None else {"lora": LORA})},
        "data": data,
        "runs": str(folder.parent),
    }
    (stage / "config.yaml").write_text(yaml.safe_dump(settings))
    (stage / "metrics.csv").write_text("step,train/loss\n0,3.0\n1,2.0\n2,1.5\n")
    example = {
        "task": "vqa",
        "part": "",
        "blind": False,
        "id": "1",
        "references": ["red"],
        "score": 1.0,
        "answer": "r|d",
    }
    shown = [{**example, "prompt": "Is it `red` | <b>?", "picture": data_uri(each)} for each in ("red", "blue")]
    found = {"value": 0.8, "low": 0.7, "high": 0.9}
    scores = {"vqa_accuracy": found, "vqa_accuracy_blind": {"value": 0.3, "low": 0.2, "high": 0.4}}
    results = {"scores": scores, "samples": {"vqa": 2}, "clusters": {"vqa": 2}, "examples": shown, "seconds": 1.0}
    (stage / "test.json").write_text(json.dumps({**results, "weights": None}))
    return folder


def llava_run(folder: Path, lora: bool = False) -> Path:
    parts = {name: asdict(TINY[name]) for name in ("vision", "language")}
    connector = {"class_path": "lightning_mllm.connectors.projector.MlpConnector"}
    stage = StageSettings(name="instruct_lora", lora=Lora(r=4, alpha=8)) if lora else StageSettings(name="instruct")
    return run(folder, LLaVA.tiny(stage=stage), {**parts, "connector": connector}, stage.name)


def case_of(module: MultimodalModule, layout: Any, folder: Path, origin: Origin, **how: Any) -> Case:
    """A folder and the case that it is compared with, in this process: a fresh one costs many seconds."""
    layout.write(folder / "folder")
    asked = fitted(module, origin.examples, whole=isinstance(layout, OwnFolder))
    assert len(asked) == 2
    write_case(module, layout, folder / "case", asked, **how)
    facts = json.loads((folder / "case/case.json").read_text())
    return folder / "folder", load_file(folder / "case/case.safetensors"), facts, {}


def test_merged_adapters_in_16_bits_are_compared_on_pictures_of_the_test(tmp_path: Path) -> None:
    root = llava_run(tmp_path / "runs/mine", lora=True)
    module, origin = load_apart(root), Origin.of(root)
    asked = fitted(module, origin.examples)
    exact = exact_logits(module, export.layout_of(module), asked)
    export._round(module, torch.bfloat16)
    folder, ours, facts, figures = case_of(module, export.layout_of(module), tmp_path, origin, exact=exact)
    assert {each.dtype for each in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert verify.compare(folder, ours, facts, figures) == ""
    assert figures["rows"] == figures["answers"] == 5 and figures["float32"]["equal"] == 5
    found = figures["bfloat16"]
    assert 1e-5 < found["largest"] <= found["tolerance"] == 2**-4 and found["mean"] < found["largest"]
    # Adapters of twice the size are told.
    tensors = {
        name: each * (1.5 if "q_proj" in name else 1) for name, each in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "logits: differ by" in verify.compare(folder, ours, facts)


def test_an_answer_may_part_in_16_bits_only_where_the_net_is_undecided() -> None:
    logits = [torch.tensor([[1.0, 0.9, 0.0]]), torch.tensor([[0.0, 1.0, 0.5]])]
    exact = checks.GreedyAnswers([[0, 1]], logits, {2}, None)
    rows = [{"answer": torch.tensor([0, 1])}]
    assert checks.rounded_answers(exact, checks.GreedyAnswers([[0, 1]], logits, {2}, None), rows, 0.05) == (1, "")
    assert checks.rounded_answers(exact, checks.GreedyAnswers([[1, 1]], logits, {2}, None), rows, 0.2) == (0, "")
    # A text ended both; the other batch was longer.
    assert checks.rounded_answers(exact, checks.GreedyAnswers([[0, 1, 9, 9]], logits, {2}, 9), rows, 0.05) == (1, "")
    _, told = checks.rounded_answers(exact, checks.GreedyAnswers([[0, 2]], logits, {2}, None), rows, 0.2)
    assert told == "greedy answer: [0], expected [0, 1], whose token 1 leads by 0.5 (> 0.2)"


def test_adapters_alone_are_what_peft_loads_on_the_net_before_them(tmp_path: Path) -> None:
    root = llava_run(tmp_path / "runs/mine", lora=True)
    module, origin = load_apart(root), Origin.of(root)
    plain = export.layout_of(module, origin, adapters=False)
    layout = AdapterFolder.of(module, plain, tmp_path / "base", origin.record["names"])
    folder, ours, facts, figures = case_of(module, layout, tmp_path, origin, merged=False)
    kept = load_file(folder / "adapter_model.safetensors")
    q = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    assert q in kept and "base_model.model.model.multi_modal_projector.linear_1.weight" in kept
    assert not [name for name in kept if "vision" in name or "embed_tokens" in name]
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (4, 8, None)
    base = load_file(tmp_path / "base/model.safetensors")
    assert not base["multi_modal_projector.linear_1.weight"].any()
    assert verify.compare(folder, ours, facts, figures, tmp_path / "base") == "" and figures["float32"]["equal"] == 5
    save_file({**kept, q: 2 * kept[q]}, folder / "adapter_model.safetensors", {"format": "pt"})
    assert verify.compare(folder, ours, facts, None, tmp_path / "base").startswith("logits: differ by")
    with pytest.raises(ValueError, match="--adapter-only: found no adapters, expected a run whose last stage trained"):
        AdapterFolder.of(LLaVA.tiny(), plain, tmp_path, ())


def sphinx_run(folder: Path, tokenizer: Path) -> Path:
    language = TINY_SPHINX["language"]
    from lightning_mllm.language.tokenizer import byte_tokenizer

    byte_tokenizer().save_pretrained(tokenizer)
    towers = [
        [{"class_path": f"{type(t).__module__}.{type(t).__qualname__}", "init_args": asdict(t)} for t in group]
        for group in TINY_SPHINX["vision"].groups
    ]
    vision = {"groups": towers, "size": TINY_SPHINX["vision"].size, "resize": TINY_SPHINX["vision"].resize}
    settings = {"vision": vision, "language": {**asdict(language), "model": str(tokenizer)}, "max_length": 1024}
    return run(folder, Sphinx.tiny(stage=StageSettings(name="instruct")), settings, "instruct")


def test_a_net_without_a_class_has_a_folder_of_its_own(tmp_path: Path) -> None:
    root = sphinx_run(tmp_path / "runs/mine", tmp_path / "tokenizer")
    module, origin = load_apart(root), Origin.of(root)
    layout = export.layout_of(module, origin)
    assert isinstance(layout, OwnFolder) and "Sphinx: has no layout in transformers" in layout.advice
    folder, ours, facts, figures = case_of(module, layout, tmp_path, origin)
    for each in (tmp_path / "runs", tmp_path / "tokenizer"):
        each.rename(tmp_path / f"moved_{each.name}")
    assert verify_own_layout.compare(folder, ours, facts, figures) == "" and figures["float32"]["largest"] == 0.0
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".jinja"}
    tensors = load_file(folder / "model.safetensors")
    name = "language.model.norm.weight"
    save_file({**tensors, name: 1.5 * tensors[name]}, folder / "model.safetensors", {"format": "pt"})
    assert verify_own_layout.compare(folder, ours, facts, {}) != ""
    config = json.loads((folder / "config.json").read_text())
    for changed, told in (
        ({"architectures": ["os.system"]}, "found the class os.system, expected one of lightning_mllm"),
        ({"init_args": {**config["init_args"], "chat": "../../secret"}}, r"found the path '\.\./\.\./secret'"),
        ({"init_args": {**config["init_args"], "language": {"model": "/etc"}}}, "found the path '/etc'"),
        ({"init_args": config["init_args"] | configured(POPEN)}, f"'{POPEN}', but there is no module"),
        ({"init_args": config["init_args"] | configured("lightning_mllm.commands.lock.Path")}, "standard library"),
        ({"init_args": []}, "found no init_args, expected the arguments of"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(ValueError, match=told):
            load(folder)
    assert not Path("here").exists()


POPEN = "lightning_mllm.commands.requeue.subprocess.Popen"


def configured(name: str) -> dict[str, Any]:
    """A class in the configuration of a language model, which has no types."""
    return {"language": {"config": {"model_type": "llama", "a": {"class_path": name, "init_args": {"args": ["here"]}}}}}


@pytest.mark.parametrize("name", [POPEN, "subprocess.Popen"])
def test_the_record_of_a_run_builds_no_class_where_any_value_stands(name: str, tmp_path: Path) -> None:
    root = llava_run(tmp_path / "runs/mine")
    file = root / "instruct/config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["model"]["init_args"]["language"]["config"] = {"b": configured(name)["language"]["config"]}
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=rf"model\.language\.config\.b\.a: found class '{name}'"):
        load(root)


def in_this_process(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """What a fresh process would do, which the tests of transformers' folders start: it imports for many seconds."""
    assert command[1:3] == ["-m", "lightning_mllm.export.verify"]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        status = verify.main(command[3:])
    return subprocess.CompletedProcess(command, status, told.getvalue(), "")


def test_an_export_tells_where_it_comes_from_and_a_repeat_only_pushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card's code is run too."""
    monkeypatch.setattr(export.subprocess, "run", in_this_process)
    root, to = llava_run(tmp_path / "runs/mine"), tmp_path / "folder"
    pushed: list[tuple[Any, ...]] = []
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(
        "lightning_mllm.export.push.push", lambda *given, **how: pushed.append((*given, how)) or "there"
    )
    command = ["export", str(root), "--to", str(to), "--dtype", "bfloat16"]
    main(command)
    assert capsys.readouterr().out.strip() == str(to) and not pushed
    record = json.loads((to / "export.json").read_text())
    figures = record["verification"]
    assert figures["rows"] == 5 and figures["bfloat16"]["largest"] < figures["bfloat16"]["tolerance"]
    assert set(record["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
    check_card(to, figures)
    before = {file: file.read_bytes() for file in to.rglob("*") if file.is_file()}
    monkeypatch.setattr(export, "export_module", lambda *_, **__: pytest.fail("exported again"))
    with pytest.raises(SystemExit):
        main(command)  # without --push nothing may lie there
    assert "found files there, expected an empty or absent folder" in capsys.readouterr().err
    (to / "README.md").write_text("# Mine\n")
    main([*command, "--push", "me/net", "--private"])
    assert capsys.readouterr().out.split() == [str(to), "there"]
    ((folder, name, how),) = pushed
    again = f"mllm export {root} --to {to} --push me/net --dtype bfloat16 --private"
    assert (folder, name, how) == (to, "me/net", {"private": True, "again": again})
    (to / "README.md").write_bytes(before[to / "README.md"])
    assert before == {file: file.read_bytes() for file in to.rglob("*") if file.is_file()}
    origin = Origin.of(root)
    assert not is_export_of(to, origin, dtype=None, adapter_only=False)
    (to / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: found another content than was exported"):
        is_export_of(to, origin, dtype=torch.bfloat16, adapter_only=False)


def check_card(to: Path, figures: dict[str, Any]) -> None:
    card = ModelCard.load(to / "README.md")
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.library_name, data.pipeline_tag) == ("unknown", "transformers", "image-text-to-text")
    assert data.eval_results is not None and data.eval_results[0].metric_value == 0.8
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    for part in ("Is it `red` | &lt;b&gt;?", "r|d", "0.700 to 0.900", "0.200 to 0.400", "<td>CocoCaptions</td>"):
        assert part in page.replace("<code>", "").replace("</code>", ""), part
    assert f"it printed: <code>{figures['printed'].replace('`', chr(39))}" in page.replace("&quot;", '"')
    for shown in ("card/0.png", "card/1.png", "card/loss.png"):
        assert shown in page
        with Image.open(to / shown) as image:
            assert image.width > 10


def test_a_comparison_that_never_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = tmp_path / "python"
    process.write_text("#!/bin/sh\nexec sleep 600\n")
    process.chmod(0o755)
    monkeypatch.setattr(export.sys, "executable", str(process))
    monkeypatch.setattr(export, "MINUTES", 1e-3)
    with pytest.raises(ValueError, match=r"was not compared with the net within 0.001 minutes, so it was removed"):
        export.verify(tmp_path, tmp_path)

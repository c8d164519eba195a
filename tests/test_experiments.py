"""Every YAML under experiments/ resolves, on every hardware it is offered for, and says what was published."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from data_modules.evaluation import EvaluationSet
from data_modules.listing import published
from data_modules.loader import Share
from lightning_mllm.commands.command_line import read_files
from lightning_mllm.commands.config import Config, read_yaml
from lightning_mllm.commands.experiments import sources_of
from lightning_mllm.commands.launch import CLI, ParsedCLI, at_once, compose
from lightning_mllm.commands.run import experiment_name, hardware_file, order_of_stages
from lightning_mllm.training.stage import StageSettings

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
FILES = sorted(EXPERIMENTS.rglob("*.yaml"))
SWEEPS = sorted((EXPERIMENTS / "sweeps").glob("*.yaml"))
STAGES = [file for file in FILES if file.stem != "net" and not file.parent.name.startswith("_") and file not in SWEEPS]
HARDWARE = sorted(file.stem for file in (EXPERIMENTS / "_hardware").glob("*.yaml"))
ONE_DEVICE = ("quickstart", "backbones", "sweeps")
"""Experiments too small to be spread."""


def is_small(stage: Path) -> bool:
    return stage.relative_to(EXPERIMENTS).parts[0] in ONE_DEVICE


def main_hardware(stage: Path) -> str:
    """What an experiment is made for."""
    return "cpu" if is_small(stage) else "gpu8"


def offered(stage: Path) -> set[str]:
    """What the experiment itself names, in the head of its `net.yaml` or of a stage."""
    heads = re.findall(r"^# Hardware: (.+)\.$", "".join(f.read_text() for f in stage.parent.glob("*.yaml")), re.M)
    return {main_hardware(stage), *(each for head in heads for each in head.split(", "))}


@cache
def resolve(stage: Path, hardware: str) -> CLI:
    net = stage.parent / "net.yaml"
    shared = [f"--config={net}"] if net.is_file() else []
    machine = hardware_file(stage.parent, hardware)
    return compose(["fit", *shared, f"--config={stage}", f"--config={machine}"], ParsedCLI)


def said(file: Path) -> dict[str, Any]:
    """What a file and those that it extends say."""
    return read_files([file])


def name(path: Path) -> str:
    return str(path.relative_to(EXPERIMENTS))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_is_read_strictly(file: Path) -> None:
    tree = read_yaml(file, Config())
    assert isinstance(tree, dict)
    assert file.read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize("stage", STAGES, ids=name)
def test_resolves_on_the_hardware_that_it_is_offered_for(stage: Path) -> None:
    hardware = offered(stage)
    assert hardware <= {*HARDWARE}
    for each in hardware:
        settings = resolve(stage, each).settings
        micro_batch = at_once(settings["stage"]["micro_batch"], settings["hardware"]["micro_batch"])
        share = Share("stage.global_batch", settings["stage"]["global_batch"], micro_batch)
        assert share.micro_batches(settings["trainer"]["devices"]) >= 1
        assert settings["data"]["init_args"]["global_batch"] == settings["stage"]["global_batch"]
        assert settings["model"]["init_args"]["stage"]["name"] == settings["stage"]["name"]


@pytest.mark.parametrize("stage", STAGES, ids=name)
def test_a_global_batch_is_whole_on_every_hardware(stage: Path) -> None:
    """As the files say it, without resolving them; small experiments are not spread."""
    resolved = resolve(stage, main_hardware(stage)).settings["stage"]
    net = [each for each in [stage.parent / "net.yaml"] if each.is_file()]
    for each in (each for each in HARDWARE if not (is_small(stage) and each == "gpu8")):
        found: Any = read_files([*net, stage, hardware_file(stage.parent, each)])
        micro_batch = at_once(resolved["micro_batch"], found["hardware"]["micro_batch"])
        share = Share("stage.global_batch", resolved["global_batch"], micro_batch)
        assert share.micro_batches(found["trainer"]["devices"]) >= 1


@pytest.mark.parametrize("stage", STAGES, ids=name)
def test_names_a_stage_of_its_architecture(stage: Path) -> None:
    settings = resolve(stage, main_hardware(stage)).settings
    module, _, cls = settings["model"]["class_path"].rpartition(".")
    architecture = getattr(__import__(module, fromlist=[cls]), cls)
    assert settings["stage"]["name"] in architecture.stages or settings["stage"]["train"]


@pytest.mark.parametrize("folder", sorted({stage.parent for stage in STAGES}), ids=name)
def test_ancestors_are_there(folder: Path) -> None:
    """What a stage starts from is an earlier stage of the folder or a stage of another experiment."""
    stages = order_of_stages(folder)
    for position, stage in enumerate(stages):
        for source in sources_of(folder / f"{stage}.yaml"):
            if "/" in source:
                assert (EXPERIMENTS / f"{source}.yaml").is_file(), source
            else:
                assert source in stages[:position], source
    assert experiment_name(folder) == name(folder)


PUBLISHED = [
    file
    for file in STAGES
    if re.match(
        r"llava(15)?_\d+b|sharegpt4v_|blip2|instructblip_|cogvlm_|sphinx_", file.relative_to(EXPERIMENTS).parts[0]
    )
]


@pytest.mark.parametrize("stage", PUBLISHED, ids=name)
def test_every_published_number_is_stated(stage: Path) -> None:
    """A later change of a default must not change a paper's recipe."""
    stated = set(said(stage)["stage"])
    needed = {"global_batch", "lr", "weight_decay", "betas", "eps", "warmup", "decay", "gradient_clip"}
    assert needed - stated == set()
    assert len(stated & {"epochs", "steps"}) == 1
    # LLaVA's schedules end at 0, the least rate of the trainer that it used.
    assert "min_lr" in stated or stage.parent.name.startswith(("llava", "sharegpt4v"))


def unsourced(text: str) -> list[str]:
    """Lines of the `stage` block that state a value and no source: beside it, above it, or on a key around it."""
    found: list[str] = []
    heads: list[tuple[int, bool]] = []
    inside = above = False
    for line in text.splitlines():
        indent, said = len(line) - len(line.lstrip()), bool(re.search(r"(^|\s)#\s*\w", line))
        if line.lstrip().startswith("#"):
            above = True
            continue
        if indent == 0:
            inside, heads = line.startswith("stage:"), []
        key, _, value = line.split(" #")[0].strip().partition(": ")
        heads = [head for head in heads if head[0] < indent]
        sourced = said or (above and indent > 0) or any(each for _, each in heads)
        if inside and value and not sourced and (indent, key) != (2, "name"):
            found.append(line)
        if not value:
            heads.append((indent, sourced))
        above = False
    return found


@pytest.mark.parametrize("stage", PUBLISHED, ids=name)
def test_every_value_of_a_stage_names_its_source(stage: Path) -> None:
    """Paper and section, released file and line, or `ours`."""
    assert unsourced(stage.read_text(encoding="utf-8")) == []


def test_a_value_without_a_source_is_found() -> None:
    assert unsourced("stage:\n  name: a\n  lr: 1.0\n  train:  # sec. 3\n    'a.*': {lr: 2.0}\n") == ["  lr: 1.0"]
    assert unsourced("# sec. 1\nstage:  # ours\n  lr: 1.0\ndata: 3\n") == []


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_value_rests_on_memory(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search("recall|rememb|from memory|not checked", text, re.IGNORECASE)
    vague = r"# .*released (code|configurations?|scripts|loader|processor|demonstration)\b(?!/)"
    assert not re.search(vague, text), "which file?"
    if is_small(file):
        assert text.startswith("# All values are ours.\n")


ADAM, BLIP2_ADAM, LLM_ADAM = (0.9, 0.999), (0.9, 0.98), (0.9, 0.95)
PAPERS: dict[str, dict[str, tuple[int, dict[str, float], float, float, tuple[float, float], float, float]]] = {
    # global batch, length, peak rate, where it ends, betas, weight decay, warm-up (a share, or steps)
    "LLaVA, arXiv 2304.08485, sec. 4 and appendix": {
        "llava_7b/align": (128, {"epochs": 1}, 2e-3, 0, ADAM, 0, 0.03),
        "llava_7b/instruct": (32, {"epochs": 3}, 2e-5, 0, ADAM, 0, 0.03),
    },
    "LLaVA-1.5, arXiv 2310.03744, table of hyper-parameters; scripts/v1_5": {
        "llava15_*b/align": (256, {"epochs": 1}, 1e-3, 0, ADAM, 0, 0.03),
        "llava15_*b/instruct": (128, {"epochs": 1}, 2e-5, 0, ADAM, 0, 0.03),
        "llava15_7b_lora/instruct_lora": (128, {"epochs": 1}, 2e-4, 0, ADAM, 0, 0.03),
    },
    "ShareGPT4V, arXiv 2311.12793, sec. 4; scripts/sharegpt4v": {
        "sharegpt4v_*/pretrain": (256, {"epochs": 1}, 2e-5, 0, ADAM, 0, 0.03),
        "sharegpt4v_*/instruct": (128, {"epochs": 1}, 2e-5, 0, ADAM, 0, 0.03),
    },
    "BLIP-2, arXiv 2301.12597, sec. 3.4 and tables 6 to 9; LAVIS's configurations": {
        "blip2/representation": (1680, {"steps": 250_000}, 1e-4, 1e-5, BLIP2_ADAM, 0.05, 2000),
        "blip2/retrieval": (224, {"epochs": 5}, 1e-5, 0, ADAM, 0.05, 1000),
        "blip2_opt*/generative": (1920, {"steps": 80_000}, 1e-4, 5e-5, BLIP2_ADAM, 0.05, 2000),
        "blip2_flan*/generative": (1520, {"steps": 80_000}, 1e-4, 5e-5, BLIP2_ADAM, 0.05, 2000),
        "blip2_*/caption": (256, {"epochs": 5}, 1e-5, 0, ADAM, 0.05, 1000),
        "blip2_*/vqa": (128, {"epochs": 5}, 1e-5, 0, ADAM, 0.05, 1000),
    },
    "InstructBLIP, arXiv 2305.06500, sec. 2.6": {
        "instructblip_*/align": (1920, {"steps": 80_000}, 1e-4, 5e-5, BLIP2_ADAM, 0.05, 2000),
        "instructblip_flant5xl/instruct": (192, {"steps": 60_000}, 1e-5, 0, ADAM, 0.05, 1000),
        "instructblip_vicuna7b/instruct": (128, {"steps": 60_000}, 1e-5, 0, ADAM, 0.05, 1000),
        "instructblip_vicuna13b/instruct": (64, {"steps": 60_000}, 1e-5, 0, ADAM, 0.05, 1000),
    },
    "CogVLM, arXiv 2311.03079, sec. 2.2, 2.3 and appendix A; finetune_cogvlm_lora.sh": {
        "cogvlm_17b/caption": (8192, {"steps": 120_000}, 1e-4, 0, LLM_ADAM, 0.05, 12_000),
        "cogvlm_17b/grounding_*": (1024, {"steps": 30_000}, 1e-5, 0, LLM_ADAM, 0.05, 1200),
        "cogvlm_17b/chat": (1024, {"steps": 6000}, 1e-5, 0, LLM_ADAM, 0.1, 0.02),
        "cogvlm_17b/chat_grounding": (1024, {"steps": 6000}, 1e-5, 0, LLM_ADAM, 0.1, 0.02),
        "cogvlm_17b/chat_lora": (32, {"steps": 800}, 1e-5, 1e-6, LLM_ADAM, 0.05, 0.02),
    },
    "SPHINX, arXiv 2311.07575, sec. 4.1; LLaMA2-Accessory": {
        "sphinx_13b/pretrain_*": (640, {"steps": 180_000}, 5e-5, 5e-6, LLM_ADAM, 0.1, 2000),
        "sphinx_*13b/instruct": (128, {"epochs": 1}, 2e-5, 0, LLM_ADAM, 0, 0.03),
    },
}
ROWS = [(source, pattern) for source, rows in PAPERS.items() for pattern in rows]


@pytest.mark.parametrize(("source", "pattern"), ROWS, ids=[pattern for _, pattern in ROWS])
def test_a_stage_takes_the_steps_and_rates_of_its_paper(source: str, pattern: str) -> None:
    """What is resolved, with all that a file extends, and the schedule that follows from it."""
    batch, length, peak, end, betas, decay, warmup = PAPERS[source][pattern]
    stages = [stage for stage in PUBLISHED if fnmatchcase(name(stage.with_suffix("")), pattern)]
    assert stages
    for path in stages:
        found = resolve(path, "gpu8").settings["stage"]
        stage = StageSettings(**{**found.as_dict(), "init_from": {}})
        assert (stage.global_batch, stage.betas, stage.weight_decay) == (batch, betas, decay), path
        assert {key: getattr(stage, key) for key in ("epochs", "steps")} == {"epochs": None, "steps": None, **length}
        total = stage.steps or 10_000
        scheduled = stage.steps_before + total + stage.steps_after
        expected = int(warmup) if warmup >= 1 else math.ceil(warmup * scheduled)
        assert stage.warmup_steps(scheduled) == expected, path
        first, top, last = (
            stage.lr * stage.lr_factor(step - stage.steps_before, total) for step in (0, expected, scheduled)
        )
        assert first < peak and top == pytest.approx(peak) and stage.min_lr == end, path
        if stage.decay != "cosine_epochs":  # which ends above it
            assert last == pytest.approx(end, abs=1e-12), path


def test_every_published_stage_is_in_one_row() -> None:
    for stage in PUBLISHED:
        assert sum(fnmatchcase(name(stage.with_suffix("")), pattern) for _, pattern in ROWS) == 1, stage


def test_cogvlms_second_pretraining_is_one_schedule_of_two_sizes() -> None:
    """60,000 steps, the last half at 490 pixels (arXiv 2311.03079, sec. 2.2); what is tuned is that of its stage."""
    halves = [resolve(EXPERIMENTS / f"cogvlm_17b/grounding_{size}.yaml", "gpu8").settings for size in (224, 490)]
    stages = [half["stage"] for half in halves]
    assert [(each["steps_before"], each["steps"], each["steps_after"]) for each in stages] == [
        (0, 30_000, 30_000),
        (30_000, 30_000, 0),
    ]
    schedules = [StageSettings(**{**stage.as_dict(), "init_from": {}}) for stage in stages]
    assert schedules[0].lr_factor(30_000, 30_000) == schedules[1].lr_factor(0, 30_000) == pytest.approx(0.516, abs=1e-3)
    sizes = {
        stage: resolve(EXPERIMENTS / f"cogvlm_17b/{stage}.yaml", "gpu8").settings["model"]["init_args"]["vision"]
        for stage in ("caption", "grounding_224", "grounding_490", "chat")
    }
    assert [each["image_size"] for each in sizes.values()] == [224, 224, 490, 490]


def test_fine_tuned_blip2_takes_the_layer_decay_of_its_tables() -> None:
    """Tables 7, 8 and 9 of arXiv 2301.12597; LAVIS's cosine by epochs, which none of them speaks of."""
    tables = {
        **{f"blip2_{lm}/caption": decay for lm, decay in {"flant5xl": 1.0, "opt2.7b": 1.0, "opt6.7b": 0.95}.items()},
        **{f"blip2_{lm}/vqa": decay for lm, decay in {"flant5xl": 0.95, "opt2.7b": 0.95, "opt6.7b": 0.9}.items()},
        "blip2/retrieval": 0.95,
    }
    for path, decay in tables.items():
        stage = said(EXPERIMENTS / f"{path}.yaml")["stage"]
        assert stage.get("train", {}).get("vision.*", {}).get("layer_decay", 1.0) == decay, path
        assert (stage["decay"], stage["warmup_lr"]) == ("cosine_epochs", 1e-8), path


def test_cogvlm_fine_tunes_two_models_from_one() -> None:
    """Sec. 2.3 of arXiv 2311.03079v2: one to talk, one to find things; neither sees the other's sets."""
    sets = {}
    for model in ("chat", "chat_grounding"):
        content = said(EXPERIMENTS / f"cogvlm_17b/{model}.yaml")
        assert content["stage"]["init_from"] == {"grounding_490": 1.0}
        init_args = content["data"]["init_args"]
        sets[model] = {*init_args["train"], *init_args["test"]}
        kinds = {each.get("init_args", {}).get("dialect") for each in init_args["train"].values()}
        assert kinds == ({"cogvlm"} if model == "chat_grounding" else {None})
    assert sets["chat"].isdisjoint(sets["chat_grounding"])


@pytest.mark.parametrize(("size", "tokens"), [("", 291), ("1k_", 1455), ("2k_", 2910)])
def test_sphinx_sees_with_four_towers(size: str, tokens: int) -> None:
    """291 tokens a view (released code: `llama_ens`, `llama_ens5`, `llama_ens10`), within what a row may hold."""
    net = resolve(EXPERIMENTS / f"sphinx_{size}13b/instruct.yaml", "gpu8").settings["model"]["init_args"]
    groups = net["vision"]["init_args"]["groups"]
    names = [[each["class_path"].rpartition(".")[2] for each in group] for group in groups]
    assert names == [["QFormerTower"], ["OpenClipTower", "ConvNextTower", "DinoTower"]]
    queries, (clip, conv, dino) = groups[0][0]["init_args"]["qformer"]["queries"], groups[1]
    assert clip["init_args"]["norm"] and {each["init_args"]["cls"] for each in (clip, conv, dino)} == {"keep"}
    assert net["image"]["views"] * (queries + 1 + conv["init_args"]["grid"] ** 2 + 2) == tokens
    assert tokens < net["max_length"] - 512


def test_sphinxs_pretrainings_take_text_in_every_step_and_are_mixed_by_halves() -> None:
    for domain in ("real", "synthetic"):
        settings = resolve(EXPERIMENTS / f"sphinx_13b/pretrain_{domain}.yaml", "gpu8").settings
        text = settings["data"]["init_args"]["text"]
        assert (text["tokens"], settings["model"]["init_args"]["image"]["views"]) == (65_536, 1)
        assert Share("data.text.tokens", text["tokens"] // text["length"], 1).micro_batches(8) == 4
        assert settings["stage"]["init_from"] == {}
    mixed = said(EXPERIMENTS / "sphinx_13b/instruct.yaml")["stage"]["init_from"]
    assert mixed == {"pretrain_real": 0.5, "pretrain_synthetic": 0.5}


@pytest.mark.parametrize("stage", [each for each in PUBLISHED if "llava" not in each.parent.name], ids=name)
def test_the_data_can_be_made(stage: Path) -> None:
    """Prompts have what their sources fill in, and no two sets give scores of one name; no file is read."""
    settings = resolve(stage, "gpu8").settings
    assert settings["data"]["init_args"]["steps"] == settings["stage"]["steps"]
    data = made(settings["data"])
    chosen, known = settings["model"]["init_args"]["decoding"] or {}, {"retrieval", "choice", "auc", "mrr"}
    assert {each.task for each in data.test.values()} <= set(chosen) | known, "written with settings of their own"


def test_texts_are_as_long_as_in_lavis() -> None:
    """To the token: a begin token counts in BLIP-2's OPT, which learns it, and not in InstructBLIP's Vicuna; T5's end
    token counts. Retrieval reads more than is learned."""
    limits = {
        "blip2_opt2.7b/generative": {"answer": 32},
        "blip2_opt2.7b/caption": {"answer": 28},  # 32 less the begin token and "a photo of"
        "blip2_opt6.7b/caption": {"answer": 28},
        "blip2_flant5xl/generative": {"answer": 32},
        "instructblip_vicuna7b/instruct": {"prompt": 128, "answer": 255, "cut": "left"},
        "instructblip_vicuna13b/instruct": {"prompt": 128, "answer": 255, "cut": "left"},
        "instructblip_flant5xl/instruct": {"prompt": 128, "answer": 256, "cut": "left"},
    }
    for path, expected in limits.items():
        found = vars(resolve(EXPERIMENTS / f"{path}.yaml", "gpu8").settings["model"]["init_args"]["text_limits"])
        assert {key: found[key] for key in expected} == expected, path
    net = resolve(EXPERIMENTS / "blip2/retrieval.yaml", "gpu8").settings["model"]["init_args"]
    assert (net["max_length"], net["retrieval_length"]) == (32, 35)


def test_where_labels_are_llavas_an_end_token_in_a_turn_is_one() -> None:
    """Its code gives whole prompts to the tokenizer; the label law of `masks: published` holds so alone."""
    nets = [said(file)["model"]["init_args"] for file in EXPERIMENTS.glob("llava*/net.yaml")]
    assert len(nets) >= 4
    assert {(net.get("masks"), net.get("special_in_turns")) for net in nets} == {("published", True)}


SPHINX_TOKENS = {"vqav2": 10, "okvqa": 10, "textvqa": 10, "gqa": 10, "ocrvqa": 20, "chartqa": 10, "docvqa": 32}
SPHINX_TOKENS |= {"refcoco_testa": 30, "refcoco_testb": 30, "refcocog": 30}
"""LLaMA2-Accessory, accessory/eval_mm/annotations/annotation_config.json, max_new_tokens."""


@pytest.mark.parametrize("size", ["", "1k_", "2k_"])
def test_sphinx_answers_as_its_released_evaluation(size: str) -> None:
    settings = resolve(EXPERIMENTS / f"sphinx_{size}13b" / "instruct.yaml", "gpu8").settings
    decoding, found = settings["model"]["init_args"]["decoding"], {}
    for set_name, each in made(settings["data"]).test.items():
        how = decoding.get(f"{each.task}_{each.part}") or decoding[each.task]
        found[set_name] = how["max_new_tokens"]
        assert (how["temperature"], how["top_p"]) == (0.1, 0.75)
        assert each.task == "exact_sphinx" or set_name not in ("gqa", "ocrvqa")
    assert found == SPHINX_TOKENS


def made(settings: Any) -> Any:
    """What `class_path` and `init_args` say, all the way down; a set to be answered says neither."""
    if isinstance(settings, Namespace | dict):
        values = dict(vars(settings)) if isinstance(settings, Namespace) else dict(settings)
        values.pop("__path__", None)
        if "class_path" in values:
            module, _, cls = values["class_path"].rpartition(".")
            arguments = made(values["init_args"])
            return getattr(__import__(module, fromlist=[cls]), cls)(**arguments)
        inner = {key: made(value) for key, value in values.items()}
        return EvaluationSet(**inner) if "source" in inner and "task" in inner else inner
    return settings


def test_instructblip_has_its_26_sets() -> None:
    """Those of `mllm data list`, trained on or tested on as it says."""
    content = yaml.safe_load((EXPERIMENTS / "_parts/instructblip_26.yaml").read_text())["init_args"]
    held_in = Counter(each["class_path"].rpartition(".")[2] for each in content["train"].values())
    held_out = Counter(each["source"]["class_path"].rpartition(".")[2] for each in content["test"].values())
    for found, kept in ((held_in, True), (held_out, False)):
        assert found == Counter(kind.__name__ for kind, each in published() if each.held_in is kept)
        assert found.total() == 13


def sources_in(tree: Any) -> Iterator[Namespace]:
    """Settings of sources that tell boxes, wherever they stand."""
    if isinstance(tree, Namespace):
        init = tree.get("init_args")
        if isinstance(init, Namespace) and init.get("frame") is not None:
            yield init
        tree = vars(tree)
    for each in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from sources_in(each)


def test_boxes_are_told_in_what_the_nets_show() -> None:
    told = 0
    for stage in STAGES:
        settings = resolve(stage, main_hardware(stage)).settings
        image = settings["model"]["init_args"].get("image")
        for source in sources_in(settings["data"]["init_args"]):
            assert image is not None, f"{name(stage)} tells boxes and leaves open how images are fitted"
            frame = {"pad": "square", "squash": "image"}.get(image["fit"])
            assert source["frame"] == frame, f"{name(stage)}: {source}"
            assert image["random_area"] is None and not image["random_flip"], name(stage)
            told += 1
    assert told > 20


def test_published_recipes_read_pixels_as_released_code() -> None:
    for stage in STAGES:
        image = resolve(stage, main_hardware(stage)).settings["model"]["init_args"].get("image")
        if image is not None and not is_small(stage):
            assert image["decode"] == "stored", name(stage)

"""A LLaVA of random values and four drawn pictures with conversations: an experiment of two stages in a folder."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from lightning_mllm.commands.stage_data import ComposedStage

COLOURS = ("red", "green", "blue", "white")
BOX = "[[000,000,499,999]]"
TOWER = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 259, "width": 16, "heads": 2, "layers": 1},
}
LANGUAGE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 272,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NET: dict[str, Any] = {
    "model": {
        "class_path": "lightning_mllm.architectures.llava.LLaVA",
        "init_args": {
            "vision": {"weights": None, "config": TOWER, "layer": -2, "cls": "drop"},
            "connector": {
                "class_path": "lightning_mllm.connectors.projector.MlpConnector",
                "init_args": {"depth": 2},
            },
            "language": {"config": LANGUAGE},
            "image": {"size": 16, "fit": "squash"},
            "max_length": 512,
        },
    }
}


def _source(kind: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": f"data_modules.sources.{kind}", "init_args": {"images": "images", **settings}}


ALIGN: dict[str, Any] = {
    "model": {"init_args": {"chat": "plain"}},
    "stage": {"name": "align", "global_batch": 2},
    "hardware": {"micro_batch": 2},
    "data": {
        "class_path": "data_modules.module.CaptionDataModule",
        "init_args": {"train": {"captions": _source("LlavaPretrain", annotations="captions.json")}},
    },
}
INSTRUCT: dict[str, Any] = {
    "stage": {"name": "instruct", "init_from": {"align": 1.0}, "global_batch": 2},
    "hardware": {"micro_batch": 2},
    "data": {
        "class_path": "data_modules.module.InstructionDataModule",
        "init_args": {
            "train": {"talks": _source("LlavaConversations", annotations="talks.json", frame="image")},
            "test": {
                "questions": {
                    "source": _source(
                        "VqaV2",
                        questions="questions.json",
                        annotations="answers.json",
                        image_pattern="{image_id}.png",
                    ),
                    "task": "vqa",
                    "limit": 2,
                }
            },
        },
    },
}


def tiny_experiment(root: Path, **changes: dict[str, Any]) -> Path:
    """Writes `experiments/tiny` and its data below `root`, which is to be the working folder; gives the experiment.

    Args:
        changes: net, align or instruct -> what is laid over the file.
    """
    _draw(root)
    folder = root / "experiments" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "experiments" / "_hardware").mkdir(exist_ok=True)
    cpu = {"hardware": {"micro_batch": 2}, "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true"}}
    (root / "experiments" / "_hardware" / "cpu.yaml").write_text(yaml.safe_dump(cpu))
    for name, content in (("net", NET), ("align", ALIGN), ("instruct", INSTRUCT)):
        laid = _over(copy.deepcopy(content), changes.get(name, {}))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(laid, sort_keys=False))
    return folder


def again(stage: ComposedStage) -> ComposedStage:
    """The same stage, its settings parsed already, its data not read yet: those of the working folder."""
    found = replace(stage)
    vars(found).update({key: value for key, value in vars(stage).items() if key in ("cli", "resolved", "module")})
    return found


def _draw(root: Path) -> None:
    (root / "images").mkdir(exist_ok=True)
    talks, captions, questions, answers = [], [], [], []
    for number, colour in enumerate(COLOURS):
        name = f"{number}.png"
        Image.new("RGB", (24, 12), colour).save(root / "images" / name)
        said = [("human", "<image>\nWhat colour?"), ("gpt", f"It is {colour}."), ("human", "Where?"), ("gpt", BOX)]
        record: dict[str, Any] = {"id": f"talk-{number}", "image": name}
        talks.append({**record, "conversations": [{"from": who, "value": text} for who, text in said]})
        caption = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"all {colour}"}]
        captions.append({**record, "conversations": caption})
        questions.append({"image_id": number, "question": "What colour?", "question_id": number})
        given = [{"answer": colour, "answer_confidence": "yes", "answer_id": k} for k in range(10)]
        answers.append({"image_id": number, "question_id": number, "answers": given, "multiple_choice_answer": colour})
        answers[-1] |= {"question_type": "what", "answer_type": "other"}
    for name, content in (
        ("talks.json", talks),
        ("captions.json", captions),
        ("questions.json", {"questions": questions}),
        ("answers.json", {"annotations": answers}),
    ):
        (root / name).write_text(json.dumps(content))


def _over(content: Any, change: Any) -> Any:
    """`content` with `change` laid over it: maps merge, all else is replaced."""
    if isinstance(content, dict) and isinstance(change, dict):
        return {**content, **{key: _over(content.get(key), value) for key, value in change.items()}}
    return change

"""The model card of an export: README.md with the front matter of the Hub, and its pictures in `card/`.

It is written twice: first without the check's figures, so that the check can run the code that the card prints; then
with them. The page is templates/card.md.jinja.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from lightning_mllm.evaluation.figures import LIGHT, STYLE, duration, number
from lightning_mllm.export.adapter import AdapterFolder
from lightning_mllm.export.card_facts import CardFacts
from lightning_mllm.export.case import drawing
from lightning_mllm.export.own_layout import OwnFolder
from lightning_mllm.export.record import PICTURES
from lightning_mllm.interop.format import HfFolder
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.files import write_text

ANSWERS = 6
"""Pictures with answers."""
LIBRARIES = {HfFolder: "transformers", AdapterFolder: "peft", OwnFolder: "lightning-mllm"}


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """What a card tells a reader to do."""

    code: str
    """Of Python, run in the folder."""
    image: str
    """A picture in the folder."""
    question: str


def write_card(
    folder: Path,
    module: MultimodalModule,
    layout: HfFolder | OwnFolder | AdapterFolder,
    facts: CardFacts,
    name: str,
    figures: Mapping[str, Any] | None = None,
) -> Snippet | None:
    """Writes README.md and its pictures, and gives what it tells a reader to do, the folder itself being its name.

    Args:
        folder: Of the export.
        module: Its net.
        layout: Its layout.
        facts: Of its run.
        name: What the reader calls the folder.
        figures: What the check found; None before it.
    """
    (folder / PICTURES).mkdir(exist_ok=True)
    shown = _pictures(folder, module, facts)
    curves = _curves(folder / PICTURES / "loss.png", facts)
    question = next((each["prompt"] for each in shown if each["prompt"]), "What is in the picture?")
    values: dict[str, Any] = {
        "facts": facts,
        "name": name,
        "title": f"{type(module).__name__}, {facts.name}",
        "architecture": type(module).__name__,
        "drawing": inspect.cleandoc(getattr(inspect.getmodule(type(module.net)), "__doc__", "") or ""),
        "library": LIBRARIES[type(layout)],
        "hf_class": (layout.config.architectures or [""])[0] if isinstance(layout, HfFolder) else "",
        "code": bool(layout.code),
        "template": isinstance(layout, HfFolder) and bool(layout.processor.chat_template),
        "pairs": layout.compared == "pairs",
        "texts": bool(module.processor.stop_rule.strings),
        "seq2seq": bool(module.processor.seq2seq),
        "question": question if layout.asks else "",
        "image": f"{PICTURES}/0.png",
        "shown": [each for each in shown if each["answer"]],
        "curves": curves,
        "figures": figures,
        "advice": layout.advice if isinstance(layout, HfFolder) else "",
        "parameters": sum(each.numel() for each in module.parameters()),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, duration=duration, cell=_cell)
    page = environment.get_template("card.md.jinja")
    write_text(folder / "README.md", f"---\n{_front(facts, values).to_yaml()}\n---\n\n{page.render(values)}")
    if isinstance(layout, AdapterFolder) or layout.compared == "pairs":
        return None
    code = environment.get_template("snippet.py.jinja").render({**values, "name": "."})
    return Snippet(code=code, image=values["image"], question=values["question"])


def _front(facts: CardFacts, values: Mapping[str, Any]) -> ModelCardData:
    """The YAML that the Hub reads."""
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=each.set.replace(", ", "-").replace(" ", "-"),
            dataset_name=each.set,
            metric_type=each.name,
            metric_name=f"{each.label}, 95 % interval [{each.low:.3f}, {each.high:.3f}]",
            metric_value=round(each.value, 4),
            dataset_split="test",
        )
        for each in facts.scores
    ]
    lineage = values["architecture"].lower()
    return ModelCardData(
        license="unknown",
        library_name=values["library"],
        pipeline_tag="image-text-to-text",
        tags=["lightning-mllm", "multimodal", "vision-language", lineage],
        base_model=facts.bases or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )


def _pictures(folder: Path, module: MultimodalModule, facts: CardFacts) -> list[dict[str, Any]]:
    """Examples of the test, their pictures in files; a drawing where there are none."""
    shown = [{**each, "file": f"{PICTURES}/{i}.png"} for i, each in enumerate(facts.examples[:ANSWERS])]
    if not shown:
        size = module.processor.image.size
        shown = [{"image": drawing(size, size), "file": f"{PICTURES}/0.png", "prompt": "", "answer": ""}]
    for each in shown:
        each["image"].save(folder / each["file"], optimize=True)
    return shown


def _curves(file: Path, facts: CardFacts) -> str:
    """The training loss of each stage as a PNG; the path from the card, or nothing."""
    stages = [each for each in facts.stages if each.loss]
    if not stages:
        return ""
    with matplotlib.rc_context({**STYLE, "font.size": 10.0}):
        figure = Figure(figsize=(4.2 * len(stages), 2.6), dpi=110, layout="constrained")
        for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
            steps, values = zip(*stage.loss, strict=True)
            axes.plot(steps, values, color=LIGHT["c0"], linewidth=1, alpha=0.3)
            width = max(1, len(values) // 25)
            means = [sum(values[max(0, i - width) : i + 1]) / (i + 1 - max(0, i - width)) for i in range(len(values))]
            axes.plot(steps, means, color=LIGHT["c0"], linewidth=2)
            axes.set_title(f"{stage.name}: training loss over steps", fontsize=10, loc="left", parse_math=False)
        figure.savefig(file, format="png", facecolor=LIGHT["card"], metadata={"Software": None})
    return f"{PICTURES}/{file.name}"


def _cell(text: object) -> str:
    """A text that stays in its cell of a table and is not read as markup."""
    plain = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return plain

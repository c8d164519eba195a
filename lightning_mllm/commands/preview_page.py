"""The page of `mllm preview`: one file without scripts; its template is evaluation/templates/preview.html.jinja."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.commands.preview_samples import ShownStage
from lightning_mllm.evaluation.report import template
from lightning_mllm.weights.files import write_text


def write_page(experiment: str, stages: Sequence[ShownStage], to: Path) -> Path:
    """Writes the page, the whole of it or nothing; gives its path.

    Raises:
        OSError: It cannot be written.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    write_text(to, render(experiment, stages))
    return to


def render(experiment: str, stages: Sequence[ShownStage]) -> str:
    """The whole page."""
    samples = [sample for stage in stages for each in stage.sets for sample in each.samples]
    return template("preview.html.jinja", blanks=_blanks, percent=_percent).render(
        experiment=experiment,
        stages=stages,
        samples=len(samples),
        differ=[sample for sample in samples if sample.verdict == "differ"],
        failed=[sample for sample in samples if sample.error],
        boxes=any(picture.original.boxes for sample in samples for picture in sample.pictures),
    )


def _blanks(text: str) -> str:
    """A token whose blanks and line ends can be seen."""
    if text and not text.strip(" "):
        return "\u00b7" * len(text)
    return text.replace("\n", "\u21b5").replace("\t", "\u21e5")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"

from __future__ import annotations

import inspect

from data_modules.listing import published
from data_modules.sources import IconQa
from data_modules.sources.questions import QuestionSource
from data_modules.sources.templates import templates
from lightning_mllm.evaluation.tasks import TASKS

HELD_OUT = {
    "NoCaps",
    "Flickr30K",
    "GQA",
    "VSR",
    "IconQA",
    "TextVQA",
    "Visual Dialog",
    "Hateful Memes",
    "VizWiz",
    "ScienceQA",
    "MSVD-QA",
    "MSRVTT-QA",
    "iVQA",
}
ROWS = [(kind, each) for kind, each in published() if each.held_in is False]


def test_the_table_holds_what_instructblip_tests_on_alone() -> None:
    assert {each.title for _, each in ROWS} == HELD_OUT and len(ROWS) == len(HELD_OUT)


def test_every_task_has_scores() -> None:
    assert {task for _, each in ROWS for task in each.tasks} <= TASKS.keys()


def test_a_test_is_asked_in_one_way_that_belongs_to_its_family() -> None:
    """Drawn templates are for training; of a test, the wording is part of the protocol."""
    for kind, each in ROWS:
        prompt = inspect.signature(kind).parameters["prompt"].default
        if kind is IconQa:  # its form decides
            prompt = IconQa("", "", "choose_txt", "", "test").prompts.templates[0].name
        if prompt is None and issubclass(kind, QuestionSource):
            prompt = kind.family
        (template,) = templates(str(prompt))
        assert template.name.split("/")[0] == each.family

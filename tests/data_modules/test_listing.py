from __future__ import annotations

import inspect

import pytest

from data_modules import sources
from data_modules.listing import main, published, table
from data_modules.sources.questions import QuestionSource
from data_modules.sources.templates import bank
from lightning_mllm import cli

HELD_IN = {
    "COCO Caption",
    "Web CapFilt",
    "TextCaps",
    "VQAv2",
    "OK-VQA",
    "A-OKVQA",
    "OCR-VQA",
    "LLaVA-Instruct detail",
    "LLaVA-Instruct reasoning",
    "LLaVA-Instruct conversation",
    "VQAv2 questions",
    "OK-VQA questions",
    "A-OKVQA questions",
}


def test_the_table_holds_what_instructblip_trains_on() -> None:
    assert {each.title for _, each in published() if each.held_in} == HELD_IN
    titles = [each.title for _, each in published()]
    assert len(set(titles)) == len(titles)


def test_rows_agree_with_their_classes() -> None:
    for kind, each in published():
        assert getattr(sources, kind.__name__) is kind, "a class is named data_modules.sources.CLASS in YAML"
        assert each.family in bank() or not each.family
        assert each.files and each.paper
        if issubclass(kind, QuestionSource):
            parameters = inspect.signature(kind).parameters
            assert "prompt" in parameters and "bad_records" in parameters
            if len(vars(kind)["published"]) == 1:
                assert (each.family, *each.tasks[:1]) in ((kind.family, kind.task), (kind.family,))


def test_the_verb_prints_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["data", "list"])
    printed = capsys.readouterr().out
    assert printed == table() and printed.isascii() and "\x1b" not in printed
    heading, rule, *rows = printed.splitlines()
    assert len(rows) == len(published()) and set(rule) == {"-"} and len(rule) == max(map(len, rows))
    start = heading.index("InstructBLIP")
    assert {row[start:].split()[0] for row in rows} <= {"held-in", "held-out", "-"}


def test_other_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="data: found 'lists', expected list"):
        main(["lists"])
    with pytest.raises(SystemExit):
        cli.main(["data", "lists"])
    assert "mllm: data: found 'lists'" in capsys.readouterr().err
    main([])
    assert "mllm data list" in capsys.readouterr().out

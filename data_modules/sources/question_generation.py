"""The questions of a set as what is to be said: InstructBLIP's question generation (arXiv 2305.06500, appendix)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from data_modules.sources.aokvqa import AOkVqa
from data_modules.sources.questions import QuestionSource
from data_modules.sources.source import Published, Wrapped
from data_modules.sources.templates import Prompts
from data_modules.sources.vqa import OkVqa, VqaV2
from lightning_mllm.contracts import Sample, Turn


class QuestionGeneration(Wrapped):
    """The questions of another source as what is to be said, the roles of question and answer exchanged.

    Args:
        source: the questions; its own template is not used.
        prompt: as in QuestionSource, with `{answer}`.
    """

    published: ClassVar[tuple[Published, ...]] = tuple(
        replace(each, title=f"{each.title} questions", family="question_generation", tasks=("caption",))
        for each in (source.published[0] for source in (VqaV2, OkVqa, AOkVqa))
    )

    def __init__(self, source: QuestionSource, prompt: str = "question_generation") -> None:
        super().__init__(source)
        self.questions, self.prompts = source, Prompts(prompt, ("answer",), ("answer",))

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        sample, question = self.questions.sample(index, generator), self.questions.question(index).question
        prompt = self.prompts.draw(generator, {"answer": sample.turns[-1].text}, len(sample.images))
        turns = (Turn(role="user", text=prompt), Turn(role="assistant", text=question))
        return replace(sample, turns=turns, references=(question,), candidates=(), task="caption", question_type="")

"""The questions of a set as what is to be said: InstructBLIP's question generation (arXiv 2305.06500, appendix)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from data_modules.sources.aokvqa import AOkVqa
from data_modules.sources.questions import QuestionSource
from data_modules.sources.source import Published, Source
from data_modules.sources.templates import Prompts
from data_modules.sources.vqa import OkVqa, VqaV2
from lightning_mllm.contracts import Sample, Turn


class QuestionGeneration(Source):
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
        self.source, self.prompts = source, Prompts(prompt, ("answer",), ("answer",))

    def load(self) -> None:
        self.source.load()

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return self.source.length(index)

    def has_image(self, index: int) -> bool:
        return self.source.has_image(index)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        asked = self.source.question(index)
        answer = self.source.learned(asked, generator)
        prompt = self.prompts.draw(generator, {"answer": answer}, len(asked.images))
        return Sample(
            id=asked.id,
            turns=(Turn(role="user", text=prompt), Turn(role="assistant", text=asked.question)),
            images=self.source._images(*asked.images),
            references=(asked.question,),
            task="caption",
        )

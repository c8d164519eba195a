"""Questions about images with several people's answers (VQAv2, arXiv 1612.00837)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from data_modules.sources.files import Entry, FileSource, one_image
from data_modules.sources.records import MAX_CAPTION, RecordError, field, list_in, read_json, refused, text_of
from lightning_mllm.contracts import IMAGE_MARK, Sample, Turn


class VqaV2(FileSource):
    """VQAv2's two files: {questions: [{question_id, image_id, question}]} and, joined by question_id,
    {annotations: [{question_id, image_id, multiple_choice_answer, answers: [{answer}]}]}.

    The answer to learn is `multiple_choice_answer`, the most frequent one; the references are all of `answers`.

    Args:
        questions: the questions file.
        annotations: the annotations file.
        images: the folder of the images.
        image_pattern: name of an image file; `{image_id:012d}` stands for its id with 12 digits.
        prompt: the user turn, with one `<image>` and with `{question}`.
    """

    def __init__(
        self,
        questions: str,
        annotations: str,
        images: str,
        image_pattern: str = "{image_id:012d}.png",
        prompt: str = "<image>\n{question}",
    ) -> None:
        super().__init__(annotations, images)
        self.questions, self.image_pattern, self.prompt = str(questions), image_pattern, one_image(prompt)
        if "{question}" not in prompt:
            raise ValueError(f"prompt: found no {{question}} in {prompt!r}, expected where the question stands")
        try:
            image_pattern.format(image_id=1)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError(
                f"image_pattern: found {image_pattern!r}, expected a name with {{image_id}} or {{image_id:012d}}"
            ) from None

    def _read(self) -> Iterator[Entry]:
        answers = self._answers()
        seen: set[int] = set()
        records = list_in(self.questions, read_json(self.questions), "questions")
        for index, record in enumerate(records):
            try:
                id, image = field(record, "question_id", int), field(record, "image_id", int)
                question = text_of(record, "question", MAX_CAPTION)
                if IMAGE_MARK in question:
                    raise RecordError(f"'question' has an {IMAGE_MARK} mark, expected it in the prompt alone")
                if id in seen:
                    raise RecordError("the id occurs twice, expected different ones")
                if id not in answers:
                    raise RecordError(f"has no annotation in {self.annotations}, expected one")
                seen.add(id)
                owner, answer, references = answers[id]
                if owner != image:
                    raise RecordError(f"image_id is {image}, expected {owner} as in {self.annotations}")
                name = self.image_pattern.format(image_id=image)
                self._folder.check(name)
            except RecordError as rule:
                raise refused(self.questions, f"questions[{index}]", record, rule, "question_id") from None
            words = len(self.prompt.split()) - 1 + len(question.split()) + len(answer.split())
            yield Entry(words, True, [str(id), name, question, answer, references])
        if len(seen) != len(answers):
            odd = next(id for id in answers if id not in seen)
            raise ValueError(f"{self.annotations}: question_id {odd} is not in {self.questions}, expected the same ids")

    def _answers(self) -> dict[int, tuple[int, str, list[str]]]:
        """Question id -> image id, the answer to learn, all answers."""
        answers: dict[int, tuple[int, str, list[str]]] = {}
        records: list[Any] = list_in(self.annotations, read_json(self.annotations), "annotations")
        for index, record in enumerate(records):
            try:
                id = field(record, "question_id", int)
                if id in answers:
                    raise RecordError("the id occurs twice, expected different ones")
                references = [field(each, "answer", str) for each in field(record, "answers", list)]
                if not references:
                    raise RecordError("'answers' is empty, expected at least one")
                answer = text_of(record, "multiple_choice_answer", MAX_CAPTION)
                answers[id] = (field(record, "image_id", int), answer, references)
            except RecordError as rule:
                raise refused(self.annotations, f"annotations[{index}]", record, rule, "question_id") from None
        return answers

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        id, name, question, answer, references = self._entry(index)
        return Sample(
            id=id,
            turns=(
                Turn(role="user", text=self.prompt.replace("{question}", question)),
                Turn(role="assistant", text=answer),
            ),
            images=self._images(name),
            references=tuple(references),
            task="vqa",
        )

"""Written scenes of the small world: what is to be said about a scene whose caption was read before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch

from data_modules.sources.files import Entry, FileSource
from data_modules.sources.records import MAX_CAPTION, RecordError, field, lines, parse, refused, text_of
from lightning_mllm.contracts import IMAGE_MARK, Sample, Turn

Form = Literal["conversation", "question", "captions", "continuation"]


class SceneText(FileSource):
    """Lines {"id", "captions": [...], "questions": [{"kind", "question", "answer"}]}; the first caption tells it all.

    A sample opens with a caption as its system turn, where a visual prompt will stand later. Then follow

        conversation   all questions in turn, each with its answer
        question       one question and its answer, drawn anew in every data epoch
        captions       the other captions in turn, each an answer to nothing
        continuation   a caption whose beginning is given: from no word to half of the words, as in BLIP-2's prefix
                       language modelling (arXiv 2301.12597, sec. 3.2)

    Args:
        annotations: the .jsonl file.
        form: what follows the caption.
        prompts: how a question is put, each with `{question}`; one of them is drawn for a sample.
        end: what stands between the opening caption and what follows.
    """

    def __init__(
        self,
        annotations: str,
        form: Form = "conversation",
        prompts: tuple[str, ...] = ("{question}",),
        end: str = "\n",
    ) -> None:
        super().__init__(annotations, "")
        if form not in get_args(Form):
            raise ValueError(f"form: found {form!r}, expected one of {', '.join(get_args(Form))}")
        if not prompts or (odd := [each for each in prompts if each.count("{question}") != 1]):
            raise ValueError(f"prompts: found {odd[0] if prompts else prompts!r}, expected {{question}} once in each")
        self.form, self.prompts, self.end = form, tuple(prompts), end

    def _read(self) -> Iterator[Entry]:
        for number, line in lines(self.annotations):
            record: object = None
            try:
                record = parse(line)
                id, captions = field(record, "id", str), field(record, "captions", list)
                texts = [text_of({"caption": each}, "caption", MAX_CAPTION) for each in captions]
                pairs = [_pair(each) for each in field(record, "questions", list)]
                if len(texts) < 2 or not pairs:
                    raise RecordError(
                        f"found {len(texts)} captions and {len(pairs)} questions, expected at least 2 and 1"
                    )
                if marks := sum(
                    text.count(IMAGE_MARK) for text in [*texts, *(text for pair in pairs for text in pair)]
                ):
                    raise RecordError(f"found {marks} {IMAGE_MARK} marks, expected none in a written scene")
            except RecordError as rule:
                raise refused(self.annotations, f":{number}", record, rule) from None
            said = [text for pair in pairs for text in pair] if self.form == "conversation" else texts[1:]
            yield Entry(sum(len(text.split()) for text in [texts[0], *said]), False, [id, texts, pairs], f":{number}")

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        id, captions, pairs = self._entry(index)

        def drawn(number: int) -> int:
            return int(torch.randint(number, (), generator=generator))

        if self.form in ("conversation", "question"):
            context, prompt = captions[0], self.prompts[drawn(len(self.prompts))]
            if self.form == "question":
                pairs = [pairs[drawn(len(pairs))]]
            said = [(prompt.replace("{question}", question), answer) for question, answer in pairs]
        else:
            order = torch.randperm(len(captions), generator=generator).tolist()
            context, *others = [captions[k] for k in order]
            said = [("", text) for text in others]
            if self.form == "continuation":
                words = others[0].split()
                cut = drawn(len(words) // 2 + 1)
                said = [(" ".join(words[:cut]), " ".join(words[cut:]))]
        turns = [Turn(role="system", text=f"{context}{self.end}")]
        for text, answer in said:
            turns += [Turn(role="user", text=text), Turn(role="assistant", text=answer)]
        return Sample(id=id, turns=tuple(turns), references=(turns[-1].text,), task="conversation")


def _pair(record: object) -> tuple[str, str]:
    return text_of(record, "question", MAX_CAPTION), text_of(record, "answer", MAX_CAPTION)

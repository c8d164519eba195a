"""A trained net that answers questions about pictures."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mllm.contracts import Batch, Encoded, ImageRef, Sample, Turn
from lightning_mllm.inference import features
from lightning_mllm.inference.conversation import Conversation
from lightning_mllm.inference.pictures import Picture, Pictures, question, references
from lightning_mllm.inference.streaming import AnswerStream
from lightning_mllm.language.generation import AnswerEnd, Decoding
from lightning_mllm.nets.base import VisionLanguageNet
from lightning_mllm.nets.encoded_images import EncodedImages
from lightning_mllm.training.module import MultimodalModule

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""How SentencePiece calls a byte of a character that has no token."""


class Model:
    """A trained net that answers, one call at a time: calls from several threads wait for one another."""

    def __init__(self, module: MultimodalModule) -> None:
        self.module = module.eval()
        self._lock = threading.Lock()

    def answer(self, image: Pictures, text: str, decoding: Decoding | None = None) -> str:
        """The answer to `text` about `image`.

        Args:
            image: A file, an open picture, several of them, or None for a question without one.
            text: The question; `<image>` in it says where a picture stands, otherwise they stand first.
            decoding: How to generate; None takes the net's own settings for questions.

        Raises:
            ValueError: A picture cannot be read or is of another kind, the question marks another number of them than
                are given, or it is longer than what the net reads.
        """
        return self._answers([self._row(*question(image, text))], decoding, EncodedImages(0))[0]

    def answers(
        self, questions: Sequence[tuple[Pictures, str]], decoding: Decoding | None = None, batch: int = 16
    ) -> list[str]:
        """The answers to many questions, in their order; questions of about one length are answered together.

        A picture that several questions show is encoded once, where the net reads it without the question.

        Args:
            questions: Pictures and text of each, as in `answer`.
            decoding: As in `answer`.
            batch: How many are answered at once.

        Raises:
            ValueError: As `answer`; names the question by its number, from 0.
        """
        asked = [question(image, text) for image, text in questions]
        order = sorted(range(len(asked)), key=lambda i: (len(asked[i][1]), len(asked[i][0][-1].text)))
        found, images = [""] * len(asked), EncodedImages()
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            rows = [self._row(*asked[i], id=f"question {i}") for i in numbers]
            for i, answer in zip(numbers, self._answers(rows, decoding, images), strict=True):
                found[i] = answer
        return found

    def stream(
        self, image: Pictures, text: str, decoding: Decoding | None = None, stop: Sequence[str] = ()
    ) -> AnswerStream:
        """The same answer in pieces, as it is written; joined, greedy ones are that of `answer`.

        Args:
            image, text, decoding: As in `answer`.
            stop: Texts that end the answer and are no part of it.

        Raises:
            ValueError: As `answer`, before anything is generated.
        """
        return self.reply(*question(image, text), decoding, stop)

    def conversation(self, system: str | None = None) -> Conversation:
        """Questions and answers that the next question stands behind.

        Args:
            system: What the conversation is opened with; None for the template's own.
        """
        return Conversation(self.reply, system)

    def reply(
        self,
        turns: Sequence[Turn],
        images: Sequence[ImageRef],
        decoding: Decoding | None = None,
        stop: Sequence[str] = (),
    ) -> AnswerStream:
        """What the assistant says behind `turns`, the last of which is the user's.

        Args:
            turns: `<image>` stands in them once for each of `images`.
            images: In the order of their marks.
            decoding, stop: As in `stream`.

        Raises:
            ValueError: As `answer`; or a text that ends the answer is empty.
        """
        if not all(stop):
            raise ValueError(f"stop: found {list(stop)}, expected no empty text")
        chosen = decoding or self.decoding
        batch = self._batch([row := self._row(turns, images)])
        own = self.module.processor.stop_rule.text

        def write(end: AnswerEnd) -> list[int]:
            with self._lock:
                return self.module.net.generate(batch, chosen, end)[0]

        return AnswerStream(
            write,
            self.module.answer_end,
            self.module.processor.decode,
            stop=stop,
            end_text="" if own is None else own.text,
            limit=chosen.max_new_tokens,
            prompt_tokens=len(row.tokens),
            byte_tokens=self._byte_tokens,
            watch=chosen.num_beams == 1,
        )

    def encode_image(self, images: Picture | Sequence[Picture]) -> Float[Tensor, "N ..."]:
        """What contrast compares of pictures: a unit vector of each f[N, E], or of each of its queries f[N, Q, E].

        Raises:
            ValueError: A picture cannot be read, or the net compares no pictures with texts.
        """
        with self._lock, torch.inference_mode():
            return features.encode_image(self.module, references(images))

    def encode_text(self, texts: str | Sequence[str]) -> Float[Tensor, "M E"]:
        """Unit vectors of texts, of the space of `encode_image`; longer ones are cut as in training.

        Raises:
            ValueError: The net compares no pictures with texts.
        """
        with self._lock, torch.inference_mode():
            return features.encode_text(self.module, [texts] if isinstance(texts, str) else list(texts))

    def match(self, images: Picture | Sequence[Picture], texts: str | Sequence[str]) -> features.Match:
        """How well each picture and its text agree: similarity, and the probability of belonging together.

        Args:
            images: N of them.
            texts: N of them.

        Raises:
            ValueError: There are not as many, a text is longer than what the net reads, or it has no matching head.
        """
        with self._lock, torch.inference_mode():
            return features.match(self.module, references(images), [texts] if isinstance(texts, str) else list(texts))

    @property
    def decoding(self) -> Decoding:
        """How questions are answered where nothing else is said."""
        return self.module.decoding.get("answer") or Decoding(max_new_tokens=128)

    def _row(self, turns: Sequence[Turn], images: Sequence[ImageRef], id: str = "question") -> Encoded:
        sample = Sample(id=id, turns=tuple(turns), images=tuple(images))
        return self.module.processor.encode(sample, generate=True, may_cut=False)

    def _batch(self, rows: Sequence[Encoded]) -> Batch:
        return self.module.processor.collate(rows, padding="left").to(self.module.device)

    def _answers(self, rows: Sequence[Encoded], decoding: Decoding | None, images: EncodedImages) -> list[str]:
        batch, net, chosen = self._batch(rows), self.module.net, decoding or self.decoding
        with self._lock, torch.inference_mode():
            known = (images,) if isinstance(net, VisionLanguageNet) else ()
            written = net.generate(batch, chosen, self.module.answer_end, *known)
        return [self.module.processor.decode(tokens) for tokens in written]

    @cached_property
    def _byte_tokens(self) -> frozenset[int]:
        tokenizer = getattr(self.module.processor, "tokenizer", None)
        vocabulary: dict[str, int] = {} if tokenizer is None else tokenizer.get_vocab()
        return frozenset(number for token, number in vocabulary.items() if BYTE_TOKEN.fullmatch(token))

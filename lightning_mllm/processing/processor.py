"""Sample -> tokens, labels and pixels -> batch; and tokens back to text. Serving and export use it as training does.

    turns --ChatTemplate--> pieces --tokenizer--> tokens T, labels T, kinds T  \
                                                                                Encoded --collate--> Batch
    images --decode_image--> RGB --ImagePolicy--> u8[N, 3, S, S]               /

Of an encoder-decoder language model the tokens are the encoder's, and the last answer is the decoder's `targets`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain, groupby
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, LITERAL_MARK, Batch, Encoded, ImageRef, Sample, TokenKind, Turn
from lightning_mllm.processing.answers import append_answers
from lightning_mllm.processing.chat import Chat
from lightning_mllm.processing.chat_template import ChatTemplate, count_marks
from lightning_mllm.processing.collate import Side, collate_rows
from lightning_mllm.processing.images import ImageError, ImageLimits, ImagePolicy, decode_image
from lightning_mllm.processing.limits import Masks, OverlongError, TextLimits, cut_answer, cut_row, cut_texts
from lightning_mllm.processing.marks import MARKS, Boundary, Row, mark_row
from lightning_mllm.processing.packed_rows import pack_samples
from lightning_mllm.processing.packing import pack
from lightning_mllm.processing.published_masks import keeps_labels
from lightning_mllm.processing.query_text import QueryText
from lightning_mllm.processing.segment_tokenizer import text_tokenizer
from lightning_mllm.processing.special_tokens import padding_token, tokens_around
from lightning_mllm.processing.stopping import StopRule
from lightning_mllm.processing.text_tokenizer import Piece, check_characters


class Processor:
    """Turns samples into what a network reads.

    Args:
        tokenizer: A fast tokenizer; labels are found through its character offsets.
        chat: How turns are written (`load_template`).
        image: How an image is fitted into the tower's square.
        vectors_per_image: Visual vectors that the net gives for one view, and so many slots; or for each view its own,
            where the parts of an image are shown with fewer.
        max_length: Tokens a row may have, slots included.
        image_boundary: What stands around an image (`marks.mark_row`).
        shared_positions: Whether all vectors of an image have one position (CogVLM).
        limits: How large an image file may be.
        text_limits: Where prompts and answers are cut.
        seq2seq: Whether the language model is an encoder-decoder.
        query_text: What a Q-Former is given of the prompt; None for nets whose Q-Former reads nothing.
        special_in_turns: Whether special tokens written in turns (`</s>` in an answer) are special tokens; else they
            are text, and only the template writes special tokens.
        masks: What becomes of samples in which nothing is learned.

    Raises:
        ValueError: a tokenizer without offsets, without any token to pad with, or without the begin and end tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        chat: Chat,
        image: ImagePolicy,
        vectors_per_image: int | Sequence[int],
        max_length: int,
        image_boundary: Boundary = "none",
        shared_positions: bool = False,
        limits: ImageLimits = ImageLimits(),
        text_limits: TextLimits = TextLimits(),
        seq2seq: bool = False,
        query_text: QueryText | None = None,
        special_in_turns: bool = False,
        masks: Masks = "strict",
    ) -> None:
        if masks not in get_args(Masks):
            raise ValueError(f"masks: found {masks!r}, expected one of {', '.join(get_args(Masks))}")
        if not tokenizer.is_fast:
            raise ValueError(
                f"found the slow tokenizer {type(tokenizer).__name__}, expected a fast one (tokenizer.json)"
            )
        vectors = [vectors_per_image] * image.num_views if isinstance(vectors_per_image, int) else [*vectors_per_image]
        if max_length < 1 or min(vectors) < 0:
            raise ValueError(
                f"found max_length {max_length} and vectors_per_image {vectors_per_image}, expected at least 1 and 0"
            )
        assert len(vectors) == image.num_views, (vectors, image.num_views)
        self.tokenizer = tokenizer
        self.chat = chat
        self.image = image
        self.vectors_per_image: int = vectors[0]  # of the first view, or the only one
        self.max_length = max_length
        self.image_boundary: Boundary = image_boundary
        self.shared_positions = shared_positions
        self.limits = limits
        self.text_limits = text_limits
        self.seq2seq = seq2seq
        self.query_text = query_text
        self.masks: Masks = masks

        self.pad_id: int = padding_token(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.image_id: int = vocabulary.get(IMAGE_MARK, self.pad_id)
        """What stands in the slots; the network overwrites its embedding."""
        self.begin, self.suffix = tokens_around(tokenizer)
        """What the tokenizer itself puts before a text, and behind it."""
        self.prefix: list[int] = [] if chat.writes_bos else self.begin
        self.mark_rows = {mark: mark_row(mark, image_boundary, vectors, vocabulary, self.pad_id) for mark in MARKS}
        """What stands in a row where a mark does."""
        self.text = text_tokenizer(tokenizer, begins=isinstance(chat, ChatTemplate))
        self.special_in_turns = special_in_turns

    def encode(
        self,
        sample: Sample,
        *,
        generate: bool = False,
        random: torch.Generator | None = None,
        may_cut: bool = True,
    ) -> Encoded:
        """Tokens, labels, kinds i64/i64/u8[T] and images u8[N, 3, S, S], N = images x views.

        Args:
            sample: Turns and images, or documents, which are packed (`pack`), in training as in evaluation.
            generate: Whether a final answer is dropped, and the row ends where the answer begins.
            random: What the image policy draws from, in training.
            may_cut: Whether `text_limits` and the Q-Former's limit cut texts; else longer ones are refused.

        Raises:
            ImageError: an image cannot be used.
            ValueError: nothing to learn, marks that do not match the images, turns that are no conversation, or more
                tokens than `max_length` where cutting the end would touch an image or leave nothing to learn.
        """
        try:
            return self._encode(sample, generate, random, may_cut)
        except ValueError as error:
            kind = type(error) if isinstance(error, ImageError | OverlongError) else ValueError
            raise kind(f"sample {sample.id!r}: {error}") from error

    def _encode(self, sample: Sample, generate: bool, random: torch.Generator | None, may_cut: bool) -> Encoded:
        if sample.documents is not None:
            if self.seq2seq:
                raise ValueError("found documents for an encoder-decoder, expected a causal language model")
            return pack(sample, sample.documents, self.text, self.begin, self.max_length, self._blank(0))
        chat, turns = self.chat.of(sample.task), sample.turns
        check_characters("".join([turn.text for turn in turns]))
        if generate and turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        pieces = chat.render(turns, generate=generate)
        kept = generate or self.masks == "strict"
        if not (kept or keeps_labels(chat, turns, lambda found: self._row(found)[2], self.max_length)):
            pieces = [piece._replace(learn=False) for piece in pieces]
        self._check_marks(sample, turns)
        row, targets, cuts = self._tokenize(pieces, generate)
        asked = [turn for turn in turns if turn.role == "user"]
        words = [turn.text if turn.literal else turn.text.replace(IMAGE_MARK, "") for turn in asked]
        questions = [text.replace(LITERAL_MARK, IMAGE_MARK).strip() for text in words]
        query_text = None
        if self.query_text is not None:
            query_text, cut = self.query_text("\n".join(questions))
            cuts += cut
        if cuts and not may_cut:
            raise ValueError(f"found {cuts[0]}")
        (tokens, labels, kinds), refs = self._fit(row, sample.images, generate or self.seq2seq)
        views = [self._views(ref, random) for ref in refs]
        notes = ["cut"] if cuts else []
        if len(tokens) < len(row[0]):
            notes.append(f"overlong: found {len(row[0])} tokens, expected at most {self.max_length}")
        if targets is None and not generate and not any(label != IGNORE for label in labels[1:]):
            notes.append("nothing learned")
        return Encoded(
            id=sample.id,
            tokens=torch.from_numpy(np.array(tokens, dtype=np.int64)),
            labels=torch.from_numpy(np.array(labels, dtype=np.int64)),
            kinds=torch.from_numpy(np.array(kinds, dtype=np.uint8)),
            images=torch.cat(views) if views else self._blank(0),
            targets=targets,
            query_text=query_text,
            image_ids=tuple(_number(ref.name) for ref in refs),
            visual_counts=(self.mark_rows[IMAGE_MARK][2].count(TokenKind.IMAGE),) * len(refs),
            references=sample.references,
            candidates=sample.candidates,
            task=sample.task,
            prompt=questions[-1] if questions else "",
            index=sample.index,
            cluster=sample.cluster,
            question_type=sample.question_type,
            notes=tuple(notes),
        )

    @staticmethod
    def _check_marks(sample: Sample, turns: Sequence[Turn]) -> None:
        for text, mark in MARKS.items():
            marks = sum(count_marks(turn, text) for turn in turns)
            items = len(getattr(sample, mark.items)) if mark.items else marks
            if marks != items:
                hint = f"; write {text} where each stands" if marks < items else ""
                raise ValueError(f"found {marks} {text} marks for {items} {mark.items}, expected as many{hint}")

    def _tokenize(self, pieces: Sequence[Piece], generate: bool) -> tuple[Row, Tensor | None, list[str]]:
        """A row; for an encoder-decoder, what its decoder learns; and what was cut, in words."""
        end = len(pieces)
        while self.seq2seq and not generate and end and pieces[end - 1].learn:
            end -= 1
        row, cuts = self._row(pieces[:end]), []
        if self.text_limits.prompt is not None or self.text_limits.answer is not None:
            row, cuts = cut_texts(row, self.text_limits, set(self.tokenizer.all_special_ids))
        if not self.seq2seq:
            return row, None, cuts
        row = row[0], [IGNORE] * len(row[0]), row[2]
        if generate:
            return row, None, cuts
        if end == len(pieces):
            raise ValueError("found nothing to learn at the end, expected an answer")
        targets, answer_cuts = self._answer(pieces[end:])
        return row, targets, [*cuts, *answer_cuts]

    def _answer(self, pieces: Sequence[Piece]) -> tuple[Tensor, list[str]]:
        """What is learned of a run that ends with an answer, and what was cut, in words.

        Of an encoder-decoder, the answer is a text of its own.
        """
        run = [piece for piece in pieces if piece.learn] if self.seq2seq else pieces
        _, labels, _ = self._tokenize_run(run)
        tokens = [label for label in labels if label != IGNORE]
        if not tokens:
            raise ValueError("found an answer without tokens, expected a non-empty one")
        tokens, cuts = cut_answer(tokens, self.text_limits, self.suffix)
        return torch.tensor(tokens, dtype=torch.long), cuts

    def _row(self, pieces: Sequence[Piece]) -> Row:
        rows: list[Row] = [(self.prefix, [IGNORE] * len(self.prefix), [int(TokenKind.TEXT)] * len(self.prefix))]
        for mark, group in groupby(pieces, key=lambda piece: piece.mark):
            run = list(group)
            rows += [self.mark_rows[piece.text] for piece in run] if mark else [self._tokenize_run(run)]
        tokens, labels, kinds = (list(chain.from_iterable(each)) for each in zip(*rows, strict=True))
        return tokens, labels, kinds

    def _tokenize_run(self, run: Sequence[Piece]) -> Row:
        """A run of text between images, tokenised as a whole."""
        tokens, learned = self.text([piece._replace(special=True) for piece in run] if self.special_in_turns else run)
        labels = [token if learn else IGNORE for token, learn in zip(tokens, learned, strict=True)]
        return tokens, labels, [int(TokenKind.TEXT)] * len(tokens)

    def _fit(self, row: Row, images: Sequence[ImageRef], prompt: bool) -> tuple[Row, Sequence[ImageRef]]:
        """The row and its images, cut where it is too long; in a `prompt` nothing is learned."""
        tokens, labels, _ = row
        if not tokens:
            raise ValueError("found no tokens, expected at least one")
        # The first token is never predicted, so its label teaches nothing.
        if self.masks == "strict" and not prompt and all(label == IGNORE for label in labels[1:]):
            raise ValueError(f"found {len(tokens)} tokens and none of them learned, expected a non-empty answer")
        if len(tokens) <= self.max_length:
            return row, images
        image_length = len(self.mark_rows[IMAGE_MARK][0])
        return cut_row(row, images, self.max_length, image_length, self.suffix, prompt, self.masks)

    def _views(self, ref: ImageRef, random: torch.Generator | None) -> Tensor:
        return self.image(decode_image(ref, self.limits, self.image.decode), random)

    def _blank(self, count: int) -> Tensor:
        return torch.zeros(count, 3, self.image.size, self.image.size, dtype=torch.uint8)

    def collate(self, rows: Sequence[Encoded], *, padding: Side = "right", packed: bool = False) -> Batch:
        """Rows of one length T, the longest (`collate_rows`); or all samples in one row (`pack_samples`)."""
        if packed:
            return pack_samples(rows, self.pad_id, self._blank(1), self.shared_positions)
        return collate_rows(rows, self.pad_id, padding, self._blank(1), self.shared_positions)

    def with_answers(self, batch: Batch, answers: Sequence[str]) -> Batch:
        """A batch of prompts (left-padded) with an answer written behind each, all of it to be judged."""
        assert len(answers) == len(batch.ids)
        templates = map(self.chat.of, batch.tasks or [""] * len(answers))
        written = [self._answer(chat.answer(text))[0] for chat, text in zip(templates, answers, strict=True)]
        return append_answers(batch, written, self.pad_id, self.seq2seq)

    @property
    def stop_rule(self) -> StopRule:
        """What ends an answer."""
        return StopRule(self.tokenizer, self.text, self.chat.stop)

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """Generated tokens as text: special tokens skipped, ended where the template says, stripped."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        if self.chat.stop:
            text = text.split(self.chat.stop, 1)[0]
        return text.strip()


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=7).digest(), "big")

"""Sample -> tokens, labels and pixels -> batch; and tokens back to text. Serving and export use it as training does.

    turns --ChatTemplate--> pieces --tokenizer--> tokens T, labels T, kinds T  \
                                                                                Encoded --collate--> Batch
    images --decode_image--> RGB --ImagePolicy--> u8[N, 3, S, S]               /
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Batch, Encoded, Sample, TokenKind
from lightning_mllm.processing.chat import Chat, Piece
from lightning_mllm.processing.decode import ImageError, ImageLimits, decode_image
from lightning_mllm.processing.images import ImagePolicy

IMAGE_BEGIN_TOKEN, IMAGE_END_TOKEN = "<im_start>", "<im_end>"
"""LLaVA's marks around an image (`mm_use_im_start_end`)."""

Row = tuple[list[int], list[int], list[int]]
"""Tokens, labels and kinds, of one length."""


class Processor:
    """Turns samples into what a network reads.

    Args:
        tokenizer: A fast tokenizer; labels are found through its character offsets.
        chat: How turns are written (`load_template`).
        image: How an image is fitted into the tower's square.
        vectors_per_image: Visual vectors the connector gives for one view; as many slots are written for each.
        max_length: Tokens a row may have, slots included.
        image_begin_end: Whether each image stands between `<im_start>` and `<im_end>` tokens.
        limits: How large an image file may be.

    Raises:
        ValueError: a tokenizer without offsets, without any token to pad with, or without the begin and end tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        chat: Chat,
        image: ImagePolicy,
        vectors_per_image: int,
        max_length: int,
        image_begin_end: bool = False,
        limits: ImageLimits = ImageLimits(),
    ) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"found the slow tokenizer {type(tokenizer).__name__}, expected a fast one (tokenizer.json)"
            )
        if max_length < 1 or vectors_per_image < 0:
            raise ValueError(
                f"found max_length {max_length} and vectors_per_image {vectors_per_image}, expected at least 1 and 0"
            )
        self.tokenizer = tokenizer
        self.chat = chat
        self.image = image
        self.vectors_per_image = vectors_per_image
        self.max_length = max_length
        self.image_begin_end = image_begin_end
        self.limits = limits
        self.truncated = 0
        """How many samples were cut at their end so far, in this process."""

        spare: list[Any] = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id]
        self.pad_id: int = next((token for token in spare if token is not None), -1)
        if self.pad_id < 0:
            raise ValueError("found a tokenizer without pad, unk and eos tokens, expected one of them to pad with")
        vocabulary = tokenizer.get_vocab()
        self.image_id: int = vocabulary.get(IMAGE_MARK, self.pad_id)
        """What stands in the slots; the network overwrites its embedding."""
        self.prefix: list[int] = [] if chat.writes_bos else _prefix(tokenizer)
        self.image_slots: Row = self._slots(vocabulary)

    def _slots(self, vocabulary: dict[str, int]) -> Row:
        slots = self.vectors_per_image * self.image.num_views
        tokens, kinds = [self.image_id] * slots, [int(TokenKind.IMAGE)] * slots
        if self.image_begin_end:
            for token in (IMAGE_BEGIN_TOKEN, IMAGE_END_TOKEN):
                if token not in vocabulary:
                    raise ValueError(f"image_begin_end: found no token {token} in the tokenizer, expected one")
            tokens = [vocabulary[IMAGE_BEGIN_TOKEN], *tokens, vocabulary[IMAGE_END_TOKEN]]
            kinds = [int(TokenKind.IMAGE_BEGIN), *kinds, int(TokenKind.IMAGE_END)]
        return tokens, [IGNORE] * len(tokens), kinds

    def encode(self, sample: Sample, *, generate: bool = False) -> Encoded:
        """Tokens, labels, kinds i64/i64/u8[T] and images u8[N, 3, S, S], N = images x views.

        With `generate` a final answer is dropped and the row ends where the answer begins.

        Raises:
            ImageError: an image cannot be used.
            ValueError: nothing to learn, marks that do not match the images, turns that are no conversation, or more
                tokens than `max_length` where cutting the end would touch an image or leave nothing to learn.
        """
        try:
            turns = sample.turns
            if generate and turns and turns[-1].role == "assistant":
                turns = turns[:-1]
            pieces = self.chat.render(turns, generate=generate)
            marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
            if marks != len(sample.images):
                raise ValueError(f"found {marks} {IMAGE_MARK} marks for {len(sample.images)} images, expected as many")
            tokens, labels, kinds = self._fit(self._tokenize(pieces), generate)
            views = [self.image(decode_image(ref, self.limits)) for ref in sample.images]
        except ImageError as error:
            raise ImageError(f"sample {sample.id!r}: {error}") from error
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from error
        questions = [turn.text for turn in turns if turn.role == "user"]
        return Encoded(
            id=sample.id,
            tokens=torch.tensor(tokens, dtype=torch.long),
            labels=torch.tensor(labels, dtype=torch.long),
            kinds=torch.tensor(kinds, dtype=torch.uint8),
            images=torch.cat(views) if views else self._blank(0),
            references=sample.references,
            task=sample.task,
            prompt=questions[-1].replace(IMAGE_MARK, "").strip() if questions else "",
        )

    def _tokenize(self, pieces: Sequence[Piece]) -> Row:
        row: Row = (list(self.prefix), [IGNORE] * len(self.prefix), [int(TokenKind.TEXT)] * len(self.prefix))
        run: list[Piece] = []
        for piece in pieces:
            if not piece.image:
                run.append(piece)
                continue
            _append(row, self._tokenize_run(run))
            _append(row, self.image_slots)
            run = []
        _append(row, self._tokenize_run(run))
        return row

    def _tokenize_run(self, run: Sequence[Piece]) -> Row:
        """A run of text between images, tokenised as a whole so that pieces cannot change how words are cut."""
        if not run:
            return [], [], []
        learned = [piece.learn for piece in run for _ in piece.text]
        coded = self.tokenizer(
            "".join(piece.text for piece in run), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        tokens: list[int] = coded["input_ids"]  # pyright: ignore[reportAssignmentType]
        # A token is learned when its last character is; end is 0 for a token that stands for no character.
        labels = [
            token if learned[max(end - 1, 0)] else IGNORE
            for token, (_, end) in zip(tokens, coded["offset_mapping"], strict=True)  # pyright: ignore
        ]
        return tokens, labels, [int(TokenKind.TEXT)] * len(tokens)

    def _fit(self, row: Row, generate: bool) -> Row:
        tokens, labels, kinds = row
        if not tokens:
            raise ValueError("found no tokens, expected at least one")
        length, limit = len(tokens), self.max_length
        # The first token is never predicted, so its label teaches nothing.
        if not generate and all(label == IGNORE for label in labels[1:]):
            raise ValueError(f"found {length} tokens and none of them learned, expected a non-empty answer")
        if length <= limit:
            return row
        if generate:
            raise ValueError(f"found a prompt of {length} tokens, expected at most {limit}")
        if any(kind != TokenKind.TEXT for kind in kinds[limit:]):
            raise ValueError(f"found {length} tokens, expected at most {limit}: cutting the end would cut an image")
        if all(label == IGNORE for label in labels[1:limit]):
            raise ValueError(f"found {length} tokens, expected at most {limit}: cutting the end would leave no answer")
        self.truncated += 1
        return tokens[:limit], labels[:limit], kinds[:limit]

    def _blank(self, count: int) -> Tensor:
        return torch.zeros(count, 3, self.image.size, self.image.size, dtype=torch.uint8)

    def collate(self, rows: list[Encoded], *, padding: Literal["right", "left"] = "right") -> Batch:
        """Rows of one length T, the longest; padding is 0 in `segments` and IGNORE in `labels`.

        A batch without images carries one blank image that owns no slot.
        """
        assert rows and padding in ("right", "left"), (len(rows), padding)
        images = torch.cat([row.images for row in rows])
        decoded = [row.targets for row in rows if row.targets is not None]
        assert len(decoded) in (0, len(rows)), "rows with and without decoder tokens"
        real = [torch.ones(len(row.tokens), dtype=torch.int32) for row in rows]
        positions = [torch.arange(len(row.tokens)) for row in rows]
        return Batch(
            ids=[row.id for row in rows],
            tokens=_pad([row.tokens for row in rows], self.pad_id, padding),
            labels=_pad([row.labels for row in rows], IGNORE, padding),
            kinds=_pad([row.kinds for row in rows], TokenKind.TEXT, padding),
            segments=_pad(real, 0, padding),
            positions=_pad(positions, 0, padding),
            images=images if len(images) else self._blank(1),
            num_images=len(images),
            targets=_pad(decoded, IGNORE, "right") if decoded else None,
            references=[row.references for row in rows],
            tasks=[row.task for row in rows],
            prompts=[row.prompt for row in rows],
        )

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """Generated tokens as text: special tokens skipped, ended where the template says, stripped."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        if self.chat.stop:
            text = text.split(self.chat.stop, 1)[0]
        return text.strip()


def _prefix(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The special tokens that the tokenizer puts before a text (BOS, or none)."""
    coded = tokenizer("a", return_special_tokens_mask=True)
    special: list[int] = coded["special_tokens_mask"]  # pyright: ignore[reportAssignmentType]
    tokens: list[int] = coded["input_ids"]  # pyright: ignore[reportAssignmentType]
    return tokens[: special.index(0)] if 0 in special else []


def _append(row: Row, other: Row) -> None:
    for mine, more in zip(row, other, strict=True):
        mine.extend(more)


def _pad(rows: list[Tensor], value: int, side: Literal["right", "left"]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

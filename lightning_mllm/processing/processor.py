"""Sample -> tokens, labels and pixels -> batch; and tokens back to text. Serving and export use it as training does.

    turns --ChatTemplate--> pieces --tokenizer--> tokens T, labels T, kinds T  \
                                                                                Encoded --collate--> Batch
    images --decode_image--> RGB --ImagePolicy--> u8[N, 3, S, S]               /

Of an encoder-decoder language model the tokens are the encoder's, and the last answer is the decoder's `targets`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Batch, Documents, Encoded, ImageRef, Sample, TokenKind
from lightning_mllm.processing.chat import Chat, ChatTemplate, Piece, count_images
from lightning_mllm.processing.decode import ImageError, ImageLimits, decode_image
from lightning_mllm.processing.ends import StopText
from lightning_mllm.processing.image_slots import ImageEnds, Row, image_slots
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.packing import pack, positions
from lightning_mllm.processing.query_text import QueryText
from lightning_mllm.processing.text_tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class TextLimits:
    """Where a long prompt and a long answer are cut, each for itself (BLIP-2's and InstructBLIP's released code).

    What the tokenizer itself puts behind a text (T5's end token, BERT's [SEP]) counts and is never cut; an end that a
    template writes (LLaMA's) is text like any other.
    """

    prompt: int | None = None
    """Tokens of the text before the answer, a begin token included; None for no limit of its own."""
    answer: int | None = None
    """Tokens that are learned, the answer's end included, and a begin token where one is; cut on the right."""
    cut: Literal["left", "right"] = "left"
    """Where prompts are cut: a begin token at the left end is kept."""

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            if (found := getattr(self, name)) is not None and found < 2:
                raise ValueError(f"limits.{name}: found {found}, expected at least 2")
        if self.cut not in ("left", "right"):
            raise ValueError(f"limits.cut: found {self.cut!r}, expected left or right")


Masks = Literal["strict", "published"]
"""What becomes of a sample in which nothing is learned.

strict: It is refused.
published: It stays in its batch and teaches nothing, as in LLaVA (haotian-liu/LLaVA, llava/train/train.py). So do those
    whose rounds that code cannot tell apart (`ChatTemplate.found_rounds`), and those of which `max_length` leaves no
    answer; an image that would be cut is left out with all behind it, which no token before it can tell.
"""


class Processor:
    """Turns samples into what a network reads.

    Args:
        tokenizer: A fast tokenizer; labels are found through its character offsets.
        chat: How turns are written (`load_template`).
        image: How an image is fitted into the tower's square.
        vectors_per_image: Visual vectors that the net gives for one view, and so many slots; or for each view its own,
            where the parts of an image are shown with fewer.
        max_length: Tokens a row may have, slots included.
        image_ends: What stands around an image (`image_slots`).
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
        image_ends: ImageEnds = "none",
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
        every = isinstance(vectors_per_image, int)
        vectors = [vectors_per_image] * image.num_views if every else list(vectors_per_image)
        if max_length < 1 or min(vectors) < 0:
            raise ValueError(
                f"found max_length {max_length} and vectors_per_image {vectors_per_image}, expected at least 1 and 0"
            )
        assert len(vectors) == image.num_views, (vectors, image.num_views)
        self.tokenizer = tokenizer
        self.chat = chat
        self.image = image
        self.vectors_per_image: int = vectors[0]
        """Of the first view, or the only one."""
        self.max_length = max_length
        self.image_ends: ImageEnds = image_ends
        self.limits = limits
        self.text_limits = text_limits
        self.seq2seq = seq2seq
        self.query_text = query_text
        self.masks: Masks = masks
        self.truncated = 0
        """How many samples were cut so far, in this process."""

        spare: list[Any] = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id]
        self.pad_id: int = next((token for token in spare if token is not None), -1)
        if self.pad_id < 0:
            raise ValueError("found a tokenizer without pad, unk and eos tokens, expected one of them to pad with")
        vocabulary = tokenizer.get_vocab()
        self.image_id: int = vocabulary.get(IMAGE_MARK, self.pad_id)
        """What stands in the slots; the network overwrites its embedding."""
        self.begin, self.suffix = _around(tokenizer)
        """What the tokenizer itself puts before a text, and behind it."""
        self.prefix: list[int] = [] if chat.writes_bos else self.begin
        self.image_slots = image_slots(image_ends, self.image_id, vectors, vocabulary)
        # A tokenizer's own template writes a whole string, as transformers tokenises it.
        self.text = TextTokenizer(tokenizer, begins=isinstance(chat, ChatTemplate))
        self.special_in_turns = special_in_turns

    def encode(self, sample: Sample, *, generate: bool = False, random: torch.Generator | None = None) -> Encoded:
        """Tokens, labels, kinds i64/i64/u8[T] and images u8[N, 3, S, S], N = images x views.

        With `generate` a final answer is dropped and the row ends where the answer begins. In training `random` is what
        the image policy draws from. Documents are packed (`pack`), in training as in evaluation.

        Raises:
            ImageError: an image cannot be used.
            ValueError: nothing to learn, marks that do not match the images, turns that are no conversation, or more
                tokens than `max_length` where cutting the end would touch an image or leave nothing to learn.
        """
        if sample.documents is not None:
            return self._packed(sample, sample.documents)
        truncated = self.truncated
        try:
            turns = sample.turns
            for turn in turns:
                check_characters(turn.text)
            if generate and turns and turns[-1].role == "assistant":
                turns = turns[:-1]
            pieces = self.chat.of(sample.task).render(turns, generate=generate)
            if self.masks == "published" and not (generate or self._told_apart(sample)):
                pieces = [piece._replace(learn=False) for piece in pieces]
            marks = sum(map(count_images, turns))
            if marks != len(sample.images):
                hint = f"; write {IMAGE_MARK} where an image stands" if marks < len(sample.images) else ""
                raise ValueError(
                    f"found {marks} {IMAGE_MARK} marks for {len(sample.images)} images, expected as many{hint}"
                )
            row, targets = self._tokenize(pieces, generate)
            (tokens, labels, kinds), refs = self._fit(row, generate or self.seq2seq, sample.images)
            views = [self.image(decode_image(ref, self.limits, self.image.decode), random) for ref in refs]
        except ImageError as error:
            raise ImageError(f"sample {sample.id!r}: {error}") from error
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from error
        asked = [turn for turn in turns if turn.role == "user"]
        questions = [(turn.text if turn.literal else turn.text.replace(IMAGE_MARK, "")).strip() for turn in asked]
        self.truncated = min(self.truncated, truncated + 1)  # prompt and answer may both have been cut
        read = "\n".join(questions)
        notes = ["cut"] if self.truncated > truncated or (self.query_text and self.query_text.cuts(read)) else []
        if targets is None and not generate and not any(label != IGNORE for label in labels[1:]):
            notes.append("nothing learned")
        return Encoded(
            id=sample.id,
            tokens=torch.tensor(tokens, dtype=torch.long),
            labels=torch.tensor(labels, dtype=torch.long),
            kinds=torch.tensor(kinds, dtype=torch.uint8),
            images=torch.cat(views) if views else self._blank(0),
            targets=targets,
            query_text=None if self.query_text is None else self.query_text(read),
            image_ids=tuple(_number(ref.name) for ref in refs),
            references=sample.references,
            candidates=sample.candidates,
            task=sample.task,
            prompt=questions[-1] if questions else "",
            index=sample.index,
            cluster=sample.cluster,
            notes=tuple(notes),
        )

    def _told_apart(self, sample: Sample) -> bool:
        """Whether LLaVA's released code keeps the labels: it finds all rounds, or those it finds fill the row."""
        chat = self.chat.of(sample.task)
        if (found := chat.found_rounds(sample.turns)) == list(sample.turns):
            return True
        if not found:
            return False
        kinds = self._row(chat.render(found))[2]
        # An image is one token where that code counts, and the end that misled it none.
        slots = sum(kind != TokenKind.TEXT for kind in kinds) - sum(map(count_images, found))
        return len(kinds) - slots >= self.max_length

    def _packed(self, sample: Sample, documents: Documents) -> Encoded:
        try:
            if self.seq2seq:
                raise ValueError("found documents for an encoder-decoder, expected a causal language model")
            return pack(sample, documents, self.text, self.begin, self.max_length, self._blank(0))
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r}: {error}") from error

    def _tokenize(self, pieces: Sequence[Piece], generate: bool) -> tuple[Row, Tensor | None]:
        """A row and, for an encoder-decoder, what its decoder learns."""
        if not self.seq2seq:
            return self._cut(self._row(pieces)), None
        end = len(pieces)
        while not generate and end and pieces[end - 1].learn:
            end -= 1
        tokens, _, kinds = self._cut(self._row(pieces[:end]))
        if end == len(pieces) and not generate:
            raise ValueError("found nothing to learn at the end, expected an answer")
        targets = self._answer(pieces[end:]) if end < len(pieces) else None
        return (tokens, [IGNORE] * len(tokens), kinds), targets

    def _answer(self, pieces: Sequence[Piece]) -> Tensor:
        """What is learned of a run that ends with an answer; of an encoder-decoder, the answer is a text of its own."""
        run = [piece for piece in pieces if piece.learn] if self.seq2seq else pieces
        _, labels, _ = self._tokenize_run(run)
        tokens = [label for label in labels if label != IGNORE]
        if not tokens:
            raise ValueError("found an answer without tokens, expected a non-empty one")
        limit = self.text_limits.answer
        if limit is not None and len(tokens) > limit:
            tokens = [tokens[i] for i in self._first(tokens, limit)]
            self.truncated += 1
        return torch.tensor(tokens, dtype=torch.long)

    def _cut(self, row: Row) -> Row:
        """The row within the limits of its prompt and its answer; visual slots are never cut."""
        tokens, labels, kinds = row
        learned = [i for i, label in enumerate(labels) if label != IGNORE]
        start = learned[0] if learned else len(tokens)
        prompt = [i for i in range(start) if kinds[i] == TokenKind.TEXT]
        kept = set(range(len(tokens)))
        if (limit := self.text_limits.prompt) is not None and len(prompt) > limit:
            # The token that begins a row, or for an encoder ends it, is no text to cut.
            fixed = prompt[:1] if tokens[prompt[0]] in self._special else []
            ends = prompt[-1:] if tokens[prompt[-1]] in self._special else []
            inner = prompt[len(fixed) : len(prompt) - len(ends)]
            room = limit - len(fixed) - len(ends)
            kept -= set(inner[:-room] if self.text_limits.cut == "left" else inner[room:])
        if (limit := self.text_limits.answer) is not None and len(learned) > limit:
            kept -= set(learned[limit:])
        if len(kept) == len(tokens):
            return row
        self.truncated += 1
        return tuple([values[i] for i in sorted(kept)] for values in row)  # pyright: ignore[reportReturnType]

    @property
    def _special(self) -> set[int]:
        return set(self.tokenizer.all_special_ids)

    def _row(self, pieces: Sequence[Piece]) -> Row:
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
        """A run of text between images, tokenised as a whole."""
        tokens, learned = self.text([piece._replace(special=piece.special or self.special_in_turns) for piece in run])
        labels = [token if learn else IGNORE for token, learn in zip(tokens, learned, strict=True)]
        return tokens, labels, [int(TokenKind.TEXT)] * len(tokens)

    def _fit(self, row: Row, generate: bool, images: Sequence[ImageRef]) -> tuple[Row, Sequence[ImageRef]]:
        """What `max_length` lets in of a row and its images."""
        tokens, labels, kinds = row
        if not tokens:
            raise ValueError("found no tokens, expected at least one")
        length, limit = len(tokens), self.max_length
        # The first token is never predicted, so its label teaches nothing.
        strict = self.masks == "strict"
        if strict and not generate and all(label == IGNORE for label in labels[1:]):
            raise ValueError(f"found {length} tokens and none of them learned, expected a non-empty answer")
        if length <= limit:
            return row, images
        if generate:
            raise ValueError(f"found a prompt of {length} tokens, expected at most {limit}")
        each = len(self.image_slots[0])
        if any(kind != TokenKind.TEXT for kind in kinds[limit:]):
            if strict:
                raise ValueError(f"found {length} tokens, expected at most {limit}: cutting the end would cut an image")
            slots = [i for i, kind in enumerate(kinds) if kind != TokenKind.TEXT]
            images = images[: sum(i < limit for i in slots) // each]
            limit = min(limit, slots[len(images) * each])
        if strict and all(label == IGNORE for label in labels[1:limit]):
            raise ValueError(f"found {length} tokens, expected at most {limit}: cutting the end would leave no answer")
        self.truncated += 1
        kept = self._first(tokens, limit)
        return ([tokens[i] for i in kept], [labels[i] for i in kept], [kinds[i] for i in kept]), images

    def _first(self, tokens: Sequence[int], limit: int) -> list[int]:
        """The positions of `limit` tokens from the left, the tokenizer's own end among them."""
        own = len(self.suffix) if tokens[-len(self.suffix) :] == self.suffix else 0
        return [*range(limit - own), *range(len(tokens) - own, len(tokens))]

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
        read = [row.query_text for row in rows if row.query_text is not None]
        one = (torch.ones(len(row.tokens), dtype=torch.int32) for row in rows)
        segments = [single if row.segments is None else row.segments for row, single in zip(rows, one, strict=True)]
        return Batch(
            ids=[row.id for row in rows],
            tokens=_pad([row.tokens for row in rows], self.pad_id, padding),
            labels=_pad([row.labels for row in rows], IGNORE, padding),
            kinds=_pad([row.kinds for row in rows], TokenKind.TEXT, padding),
            segments=_pad(segments, 0, padding),
            positions=_pad([positions(each) for each in segments], 0, padding),
            images=images if len(images) else self._blank(1),
            num_images=len(images),
            targets=_pad(decoded, IGNORE, "right") if decoded else None,
            query_text=_pad(read, IGNORE, "right") if read else None,
            image_ids=torch.tensor([number for row in rows for number in row.image_ids], dtype=torch.long),
            references=[row.references for row in rows],
            tasks=[row.task for row in rows],
            prompts=[row.prompt for row in rows],
            candidates=[row.candidates for row in rows],
            indices=[row.index for row in rows],
            clusters=[row.cluster for row in rows],
            notes=[row.notes for row in rows],
        )

    def with_answers(self, batch: Batch, answers: Sequence[str]) -> Batch:
        """A batch of prompts (left-padded) with an answer written behind each, all of it to be judged."""
        assert len(answers) == len(batch.ids)
        templates = map(self.chat.of, batch.tasks or [""] * len(answers))
        written = [self._answer(chat.answer(text)) for chat, text in zip(templates, answers, strict=True)]
        if self.seq2seq:
            return replace(batch, targets=_pad(written, IGNORE, "right"))
        labels = _pad(written, IGNORE, "right").to(batch.tokens.device)
        real = labels != IGNORE
        last = batch.positions[:, -1:]
        prompt = torch.full_like(batch.labels, IGNORE)
        return replace(
            batch,
            tokens=torch.cat([batch.tokens, labels.masked_fill(~real, self.pad_id)], 1),
            labels=torch.cat([prompt, labels], 1),
            kinds=torch.cat([batch.kinds, torch.full_like(labels, TokenKind.TEXT, dtype=batch.kinds.dtype)], 1),
            segments=torch.cat([batch.segments, real.to(batch.segments.dtype)], 1),
            positions=torch.cat([batch.positions, (last + real.cumsum(1)) * real], 1),
        )

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's own end, and the template's where that is one token."""
        end: Any = self.tokenizer.eos_token_id
        ends = [] if end is None else [int(end)]
        return ends + [token for token in self._stop_tokens if len(self._stop_tokens) == 1 and token not in ends]

    @property
    def stop(self) -> StopText | None:
        """The text that ends an answer where no special token does: it may be written in several ways."""
        one = self.tokenizer.added_tokens_decoder.get(self._stop_tokens[0]) if len(self._stop_tokens) == 1 else None
        return StopText(self.tokenizer, self.chat.stop) if self.chat.stop and not (one and one.special) else None

    @property
    def stop_strings(self) -> list[str]:
        """Texts of several tokens that end an answer: what `ends` cannot say."""
        return [self.chat.stop] if self.chat.stop and len(self._stop_tokens) != 1 else []

    @property
    def _stop_tokens(self) -> list[int]:
        """The template's end as it is learned behind a word; none where it is no tokens of its own."""
        if not self.chat.stop:
            return []
        vocabulary = self.tokenizer.get_added_vocab()
        if self.chat.stop in vocabulary:
            return [vocabulary[self.chat.stop]]
        alone, stopped = (self.text([Piece(text, True, special=True)])[0] for text in ("a", f"a{self.chat.stop}"))
        return stopped[len(alone) :] if stopped[: len(alone)] == alone else []

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """Generated tokens as text: special tokens skipped, ended where the template says, stripped."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        if self.chat.stop:
            text = text.split(self.chat.stop, 1)[0]
        return text.strip()


def _around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text (BOS, or none), and behind it."""
    coded = tokenizer("a", return_special_tokens_mask=True)
    special: list[int] = coded["special_tokens_mask"]  # pyright: ignore[reportAssignmentType]
    tokens: list[int] = coded["input_ids"]  # pyright: ignore[reportAssignmentType]
    if 0 not in special:
        return [], []
    return tokens[: special.index(0)], tokens[len(tokens) - special[::-1].index(0) :]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


def check_characters(text: str) -> None:
    """ValueError for half of a surrogate pair (half an emoji), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"found half of a character ({text[error.start]!a}), expected whole ones") from None


def _append(row: Row, other: Row) -> None:
    for mine, more in zip(row, other, strict=True):
        mine.extend(more)


def _pad(rows: list[Tensor], value: int, side: Literal["right", "left"]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

"""Rows of tokens for people: a chip for each token, runs of image slots as one, and what they say as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Encoded, TokenKind

KINDS = {
    TokenKind.TEXT: "text",
    TokenKind.IMAGE: "image",
    TokenKind.IMAGE_BEGIN: "begin",
    TokenKind.IMAGE_END: "end",
}
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece names a byte that it has no word for."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One token, or a run of an image's slots."""

    text: str
    title: str
    """What a pointer that rests on it is told: its number, its name in the vocabulary, its place."""
    kind: str = "text"
    learned: bool = False
    count: int = 1
    document: int = 0
    """Of a packed row, the number of the document that begins here."""


class TokenText:
    """What tokens stand for, blanks and line ends as they are.

    Args:
        tokenizer: A fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        decoder = tokenizer.backend_tokenizer.decoder
        self._decoder = decoder if "ByteLevel" in repr(decoder) or "WordPiece" in repr(decoder) else None
        self._special = set(tokenizer.all_special_ids)

    def name(self, token: int) -> str:
        """As the vocabulary has it."""
        found: Sequence[str] = self.tokenizer.convert_ids_to_tokens([token])
        return found[0] if found[0] is not None else f"<{token}>"

    def of(self, tokens: Sequence[int]) -> str:
        """The text of a run."""
        text, words = "", list[str]()
        for token in tokens:
            if token in self._special:
                text, words = text + self._written(words) + self.name(token), []
            else:
                words.append(self.name(token))
        return text + self._written(words)

    def _written(self, words: list[str]) -> str:
        if not words:
            return ""
        if self._decoder is not None:
            return self._decoder.decode(words)
        text, held = "", bytearray()
        for word in words:
            if found := BYTE.fullmatch(word):
                held.append(int(found[1], 16))
                continue
            text, held = text + held.decode("utf-8", errors="replace") + word.replace("\u2581", " "), bytearray()
        return text + held.decode("utf-8", errors="replace")


def chips(row: Encoded, words: TokenText) -> list[Chip]:
    """The row that the net reads."""
    tokens, kinds = row.tokens.tolist(), row.kinds.tolist()
    learned = [label != IGNORE for label in row.labels.tolist()]
    segments = [1] * len(tokens) if row.segments is None else row.segments.tolist()
    found, position = list[Chip](), 0
    counts = iter(row.visual_counts)
    left = next(counts, 0)
    while position < len(tokens):
        kind, length = kinds[position], 1
        if kind == TokenKind.IMAGE:
            # Images that stand side by side are told apart by how many vectors each has.
            while length < left and position + length < len(kinds) and kinds[position + length] == kind:
                length += 1
            left -= length
            left = left if left > 0 else next(counts, 0)
        new = position == 0 or segments[position] != segments[position - 1]
        document = segments[position] if row.segments is not None and new else 0
        found.append(
            Chip(
                text=_shown(tokens[position], kind, words),
                title=_title(tokens[position], position, length, words),
                kind=KINDS.get(TokenKind(kind), "other"),
                learned=learned[position],
                count=length,
                document=document,
            )
        )
        position += length
    return found


def learned_chips(tokens: Sequence[int], words: TokenText, *, learned: bool) -> list[Chip]:
    """Tokens beside the row: a decoder's targets, or what a Q-Former reads."""
    return [
        Chip(text=words.of([token]), title=_title(token, position, 1, words), learned=learned)
        for position, token in enumerate(tokens)
    ]


def _shown(token: int, kind: int, words: TokenText) -> str:
    if kind == TokenKind.TEXT:
        return words.of([token])
    # Of learned vectors at the ends of an image nothing in the vocabulary is meant.
    own = words.name(token) if kind != TokenKind.IMAGE else IMAGE_MARK
    meant = token not in (words.tokenizer.pad_token_id,) and own != IMAGE_MARK
    return own if meant or kind == TokenKind.IMAGE else KINDS[TokenKind(kind)]


def _title(token: int, position: int, length: int, words: TokenText) -> str:
    place = f"position {position}" if length == 1 else f"positions {position} to {position + length - 1}"
    return f"token {token}  {words.name(token)!r}  {place}"


@dataclass(frozen=True)
class Said:
    """A part of a prompt as text, or a run of image slots."""

    text: str
    slots: int = 0
    learned: bool = False


def prompt_parts(row: Encoded, words: TokenText, *, learns: bool = True) -> list[Said]:
    """The row as text, its image slots as one mark each, cut where learning begins and ends, if it `learns`."""
    labels = row.labels.tolist() if learns else [IGNORE] * len(row.labels)
    return list(_parts(row, labels, words))


def _parts(row: Encoded, labels: Sequence[int], words: TokenText) -> Iterator[Said]:
    tokens, kinds = row.tokens.tolist(), row.kinds.tolist()
    like = [(kind == TokenKind.IMAGE, label != IGNORE) for kind, label in zip(kinds, labels, strict=True)]
    start = 0
    while start < len(tokens):
        end = start + 1
        while end < len(tokens) and like[end] == like[start]:
            end += 1
        image, learned = like[start]
        if image:
            yield Said(text=IMAGE_MARK, slots=end - start)
        elif text := _text(tokens[start:end], kinds[start:end], words):
            yield Said(text=text, learned=learned)
        start = end


def _text(tokens: Sequence[int], kinds: Sequence[int], words: TokenText) -> str:
    """Of tokens between images: those at the ends of an image that are no words are left out."""
    kept = [
        token
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == TokenKind.TEXT or _shown(token, kind, words) not in ("begin", "end")
    ]
    return words.of(kept)

"""Documents in one row of tokens, each a segment of its own.

tokens     <s> a  b  c </s> <s> d  e </s> <s> f  g     cut at the end of the row
labels      -  a  b  c </s>  -  d  e </s>  -  f  g
segments    1  1  1  1  1    2  2  2  2    3  3  3
positions   0  1  2  3  4    0  1  2  3    0  1  2
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Documents, Encoded, Sample, TokenKind
from lightning_mllm.processing.chat import Piece
from lightning_mllm.processing.text_tokenizer import TextTokenizer


def pack(
    sample: Sample,
    documents: Documents,
    tokenizer: TextTokenizer,
    begin: list[int],
    most: int,
    images: UInt8[Tensor, "0 3 H W"],
) -> Encoded:
    """The sample's documents after one another until the row is full; what does not fit is left out.

    Nothing in a document is a special token, whatever it looks like.

    Args:
        sample: Whose documents they are.
        documents: The last one has no end token if it is continued elsewhere.
        tokenizer: Its end token ends a document; it may have none.
        begin: What stands before a document, not learned.
        most: Tokens that a row may have.
        images: None of them.

    Raises:
        ValueError: The row is to be longer than `most`, or there is nothing to learn.
    """
    length = most if documents.length is None else documents.length
    if length > most:
        raise ValueError(f"found a row of {length} tokens, expected at most {most} = max_length of the net")
    last_token: Any = tokenizer.tokenizer.eos_token_id
    end = [] if last_token is None else [int(last_token)]
    tokens: list[int] = []
    labels: list[int] = []
    segments: list[int] = []
    last = len(documents.texts) - 1
    for place, text in enumerate(documents.texts):
        if len(tokens) >= length:
            break
        words, _ = tokenizer([Piece(text, True)])
        if words:
            learned = words if documents.continued and place == last else [*words, *end]
            tokens += [*begin, *learned]
            labels += [*[IGNORE] * len(begin), *learned]
            segments += [segments[-1] + 1 if segments else 1] * (len(begin) + len(learned))
    # The first token is never predicted, so its label teaches nothing.
    if all(label == IGNORE for label in labels[1:length]):
        raise ValueError(f"found {len(documents.texts)} documents and no token to learn in them, expected some")
    row = torch.tensor(tokens[:length], dtype=torch.long)
    return Encoded(
        id=sample.id,
        tokens=row,
        labels=torch.tensor(labels[:length], dtype=torch.long),
        kinds=torch.full(row.shape, TokenKind.TEXT, dtype=torch.uint8),
        segments=torch.tensor(segments[:length], dtype=torch.int32),
        images=images,
        task=sample.task,
        index=sample.index,
        cluster=sample.cluster,
    )


def positions(segments: Int[Tensor, " T"]) -> Int[Tensor, " T"]:
    """Of each token in its own segment, from 0."""
    place = torch.arange(len(segments))
    begins = torch.ones_like(place, dtype=torch.bool)
    begins[1:] = segments[1:] != segments[:-1]
    return place - (place * begins).cummax(0).values


def shared_positions(kinds: UInt8[Tensor, "B T"], segments: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions by which all vectors of an image stand at one place (CogVLM, arXiv 2311.03079, and its released code).

    kind       TEXT  IMAGE_BEGIN  IMAGE  IMAGE  IMAGE  IMAGE_END  TEXT  TEXT
    position    0        1          2      2      2        3        4     5

    Args:
        kinds: Two images need a token that is no IMAGE between them, or they are one.
        segments: Positions restart in each; padding, 0, has position 0.
    """
    # Before the first token stands one of a segment that does not exist.
    starts = segments != F.pad(segments[:, :-1], (1, 0), value=-1)
    image = kinds == TokenKind.IMAGE
    follows = image & F.pad(image[:, :-1], (1, 0))
    count = (~follows).long().cumsum(1)
    # The count never falls, so that the largest at a start so far is that of the token's own segment.
    base = torch.where(starts, count, 0).cummax(1).values
    return (count - base).masked_fill(segments == 0, 0)

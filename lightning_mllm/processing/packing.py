"""Documents in one row of tokens, each a segment of its own.

tokens     <s> a  b  c </s> <s> d  e </s> <s> f  g     cut at the end of the row
labels      -  a  b  c </s>  -  d  e </s>  -  f  g
segments    1  1  1  1  1    2  2  2  2    3  3  3
positions   0  1  2  3  4    0  1  2  3    0  1  2
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_mllm.contracts import IGNORE, Documents, Encoded, Sample, TokenKind
from lightning_mllm.processing.text_tokenizer import Piece, TextTokenizer


def pack(
    sample: Sample,
    documents: Documents,
    tokenizer: TextTokenizer,
    begin: list[int],
    most: int,
    images: UInt8[Tensor, "0 3 H W"] | Float[Tensor, "0 F"],
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
    for index, text in enumerate(documents.texts):
        if len(tokens) >= length:
            break
        words, _ = tokenizer([Piece(text, True)])
        if words:
            learned = words if documents.continued and index == last else [*words, *end]
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

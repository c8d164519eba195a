"""The largest batch that a processor makes: every row as long as it may be, all that can be learned in it learned."""

from __future__ import annotations

import torch

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Batch, Encoded, TokenKind
from lightning_mllm.processing.processor import Processor


def full_batch(processor: Processor, rows: int, images: int = 1) -> Batch:
    """`rows` rows of `max_length` tokens, or of what `text_limits` leaves of them; their values mean nothing.

    Args:
        processor: Of the net.
        rows: B.
        images: Of each row; a net that is shown none (one pixel a side) has none.

    Raises:
        ValueError: The slots of the images alone are longer than a row may be.
    """
    return processor.collate([_row(processor, number, images) for number in range(rows)])


def _row(processor: Processor, number: int, images: int) -> Encoded:
    images = images if processor.image.size > 1 else 0
    slots, _, kinds = processor.mark_rows[IMAGE_MARK]
    fixed = len(processor.prefix) + images * len(slots)
    limits, room = processor.text_limits, processor.max_length - fixed
    if room < 1:
        raise ValueError(
            f"max_length: found {processor.max_length}, expected more than the {fixed} tokens of {images} images"
        )
    answer = min(limits.answer or room, room)
    prompt = 0 if processor.seq2seq or limits.answer is None else room - answer
    if processor.seq2seq:
        prompt, written, answer = min(limits.prompt or room, room), limits.answer or processor.max_length, 0
    elif limits.prompt is not None:
        prompt = min(prompt, limits.prompt)
    token = processor.pad_id
    length = fixed + prompt + answer
    size = processor.image.size
    read = processor.query_text
    return Encoded(
        id=str(number),
        tokens=torch.full((length,), token),
        labels=torch.tensor([IGNORE] * (length - answer) + [token] * answer),
        kinds=torch.tensor(
            [TokenKind.TEXT] * len(processor.prefix) + images * kinds + [TokenKind.TEXT] * (prompt + answer),
            dtype=torch.uint8,
        ),
        images=torch.zeros(images * processor.image.num_views, 3, size, size, dtype=torch.uint8),
        targets=torch.full((written,), token) if processor.seq2seq else None,
        query_text=None if read is None else torch.zeros(read.max_length, dtype=torch.long),
        image_ids=tuple(range(number * images, (number + 1) * images)),
        visual_counts=(kinds.count(TokenKind.IMAGE),) * images,
    )

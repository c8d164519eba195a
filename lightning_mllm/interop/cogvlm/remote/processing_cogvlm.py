"""Pictures and text to what a CogVLM reads; this file travels with the weights.

    text with <image> --cut at the marks, each piece tokenised--> input_ids, token_type_ids, attention_mask i[B, T]
    pictures --image_processor--> images, of each row its f[3, S, S]

Legend: B rows, T tokens, left-padded, S side of a square of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

IMAGE_MARK = "<image>"
"""Where an image stands in a text; it need be no token."""


class CogVLMProcessor(ProcessorMixin):
    """An image processor and a tokenizer.

    Args:
        num_image_tokens: Tokens of an image, its begin and end included.
        image_token_id: What stands at them; the model overwrites it.
        writes_begin: Whether what the tokenizer puts before a text is put before the row; else the text brings it.
        chat_template: How conversations are written.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 1227,
        image_token_id: int = 0,
        writes_begin: bool = True,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.num_image_tokens = num_image_tokens
        self.image_token_id = image_token_id
        self.writes_begin = writes_begin

    def __call__(self, images: object = None, text: str | list[str] | None = None, **kwargs: object) -> BatchFeature:
        """Tensors for the model, whatever `return_tensors` says.

        Args:
            images: Pictures, in order, nested or not; a text owns as many as it has marks.
            text: One text or several.

        Raises:
            ValueError: The texts have other numbers of marks than there are images.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        pictures = list(flat(images))
        counts = [each.count(IMAGE_MARK) for each in texts]
        if sum(counts) != len(pictures):
            raise ValueError(f"text: found {sum(counts)} {IMAGE_MARK} marks, expected {len(pictures)}, one an image")
        rows = [self.row(each) for each in texts]
        longest = max(len(tokens) for tokens, _ in rows)
        spare = self.image_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        pads = [longest - len(tokens) for tokens, _ in rows]
        data: dict[str, Any] = {
            "input_ids": [[spare] * pad + tokens for pad, (tokens, _) in zip(pads, rows, strict=True)],
            "token_type_ids": [[0] * pad + types for pad, (_, types) in zip(pads, rows, strict=True)],
            "attention_mask": [[0] * pad + [1] * (longest - pad) for pad in pads],
        }
        data = {name: torch.tensor(value) for name, value in data.items()}
        if pictures:
            pictures = self.image_processor.fetch_images(pictures)
            pixels = self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
            data["images"] = [list(each) for each in pixels.split(counts)]
        return BatchFeature(data)

    def row(self, text: str) -> tuple[list[int], list[int]]:
        """Tokens and their types."""
        first, *others = text.split(IMAGE_MARK)
        begin = self.begin()
        # A template may have written what the tokenizer would put before it.
        written = "".join(self.tokenizer.convert_ids_to_tokens(begin))
        tokens = [*([] if written and text.startswith(written) else begin), *self.tokens(first)]
        types = [0] * len(tokens)
        for piece in others:
            ids = self.tokens(piece)
            tokens += [self.image_token_id] * self.num_image_tokens + ids
            types += [1] * self.num_image_tokens + [0] * len(ids)
        return tokens, types

    def tokens(self, piece: str) -> list[int]:
        return self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []

    def begin(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text."""
        if not self.writes_begin:
            return []
        coded = self.tokenizer("a", return_special_tokens_mask=True)
        special = coded["special_tokens_mask"]
        return coded["input_ids"][: special.index(0)] if 0 in special else []

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "token_type_ids", "attention_mask", "images"]


def flat(images: object) -> Iterator[Any]:
    """Pictures out of whatever lists they are in."""
    if isinstance(images, (list, tuple)):
        for each in images:
            yield from flat(each)
    elif images is not None:
        yield images

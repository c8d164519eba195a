"""A language model alone, trained on text: where the small world's own language models come from.

    tokens i[B,T] --embedding--> f[B,T,D] --language: causal, or encoder-decoder--> logits f[S,W] -> cross-entropy

Legend: B rows, T tokens, D width, S supervised tokens, W words of the vocabulary.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.contracts import Batch, Output
from lightning_mllm.language.generation import AnswerEnd, Decoding, generate
from lightning_mllm.language.lm_loss import lm_losses, lm_output
from lightning_mllm.nets.base import Net


class LanguageModelNet(Net):
    """A causal or encoder-decoder model of transformers."""

    def __init__(self, language: PreTrainedModel) -> None:
        super().__init__()
        self.language = language

    def embeddings(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Of the tokens.

        Raises:
            ValueError: The batch brings images.
        """
        if batch.num_images:
            raise ValueError(f"found {batch.num_images} images (samples {batch.ids[:5]}), expected text alone")
        return self.language.get_input_embeddings()(batch.tokens)

    def forward(self, batch: Batch) -> Output:
        """The loss of the next token, over supervised tokens."""
        return lm_output(self.language, self.embeddings(batch), batch)

    def losses(self, batch: Batch) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        return lm_losses(self.language, self.embeddings(batch), batch)

    def generate(self, batch: Batch, decoding: Decoding, end: AnswerEnd) -> list[list[int]]:
        return generate(self.language, self.embeddings(batch), batch.segments > 0, decoding, end)

"""A causal language model alone, trained on text: where the small world's own language model comes from.

    tokens i[B,T] --embedding--> f[B,T,D] --language, causal in each segment--> hidden f[B,T,D]
                                                                  |
                                              head at supervised tokens -> cross-entropy

Which tokens are supervised is the chat template's choice: all of a text under `plain`, the answers of a conversation
under `vicuna_v1`.

Legend: B rows, T tokens, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.contracts import Batch, Output, Stage, Train
from lightning_mllm.evaluation.generation import Decoding, generate
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.decode import decode, head
from lightning_mllm.language.loss import next_token_loss
from lightning_mllm.language.tokenizer import load_tokenizer
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.weights.keymap import KeyMap


class LanguageModelPretraining(MultimodalModule):
    """Next-token prediction on text.

    Args:
        language: Any causal language model of transformers; fresh with `weights: null` or a `config`.
        chat: A template of `processing/templates`, or "tokenizer" for the tokenizer's own.
        max_length: Tokens a row may have.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The tokenizer has more tokens than the embedding has rows, or a part is not there.
    """

    stages: ClassVar[dict[str, Stage]] = {"pretrain": Stage(train={"language.*": Train()})}
    key_maps: ClassVar[dict[str, KeyMap]] = {"hf": KeyMap((("language.{...}", "{...}"),))}

    language: PreTrainedModel

    def __init__(
        self,
        language: CausalLM,
        chat: str = "plain",
        max_length: int = 2048,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        tokenizer = load_tokenizer(language.model)
        if len(tokenizer) > language.vocab:
            raise ValueError(
                f"language: the tokenizer has {len(tokenizer)} tokens, expected at most {language.vocab}, the rows of"
                " the embedding"
            )
        # One pixel: the blank image that every batch carries is not looked at.
        image = ImagePolicy(size=1, fit="squash")
        processor = Processor(tokenizer, load_template(chat, tokenizer), image, 0, max_length)
        super().__init__(parts={"language": language}, processor=processor, stage=stage, decoding=decoding)

    def forward(self, batch: Batch) -> Output:
        """Loss of the next token, over supervised tokens."""
        hidden = decode(self.language, self.embed(batch), batch.segments, batch.positions)
        loss, count = next_token_loss(hidden, head(self.language), batch.labels, batch.segments)
        return Output(loss=loss, count=count)

    def embed(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Embeddings of the tokens.

        Raises:
            ValueError: The batch brings images.
        """
        if batch.num_images:
            raise ValueError(f"found {batch.num_images} images (samples {batch.ids[:5]}), expected text alone")
        return self.language.get_input_embeddings()(batch.tokens)

    def generate(self, batch: Batch, decoding: Decoding) -> list[list[int]]:
        return generate(
            self.language,
            self.embed(batch),
            batch.segments > 0,
            decoding,
            eos=self.processor.tokenizer.eos_token_id,
            pad=self.processor.pad_id,
            synced=self.sharded,
        )

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file; bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "language": TINY_LLAMA,
    "max_length": 1024,
}

"""A language model alone, trained on text: where the small world's own language models come from.

    tokens i[B,T] --embedding--> f[B,T,D] --language: causal, or encoder-decoder--> logits f[S,W] -> cross-entropy

Which tokens are supervised is the chat template's choice: all of a text under `plain`, the answers of a conversation
under `vicuna_v1`.

Legend: B rows, T tokens, D width, S supervised tokens, W words of the vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from lightning_mllm.contracts import Batch, Output, ParamGroup, Stage, Term
from lightning_mllm.evaluation.generation import Decoding, generate
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.lm_loss import lm_losses
from lightning_mllm.language.seq2seq import Seq2SeqLM
from lightning_mllm.language.tokenizer import language_tokenizer
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings


class LanguageModelPretraining(MultimodalModule):
    """Next-token prediction on text.

    Args:
        language: Any causal or encoder-decoder model of transformers; fresh with `weights: null` or a `config`.
        chat: A template of `processing/templates`, or "tokenizer" for the tokenizer's own.
        max_length: Tokens a row may have.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The tokenizer has more tokens than the embedding has rows, or a part is not there.
    """

    stages: ClassVar[dict[str, Stage]] = {"pretrain": Stage(train={"language.*": ParamGroup()})}

    language: PreTrainedModel

    def __init__(
        self,
        language: CausalLM | Seq2SeqLM,
        chat: str = "plain",
        max_length: int = 2048,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        tokenizer = language_tokenizer(language)
        # One pixel: the blank image that every batch carries is not looked at.
        image = ImagePolicy(size=1, fit="squash")
        seq2seq = isinstance(language, Seq2SeqLM)
        processor = Processor(tokenizer, load_template(chat, tokenizer), image, 0, max_length, seq2seq=seq2seq)
        super().__init__(parts={"language": language}, processor=processor, stage=stage, decoding=decoding)

    def forward(self, batch: Batch) -> Output:
        """Loss of the next token, over supervised tokens."""
        losses, tokens = self.losses(batch)
        return Output(terms={"language": Term(losses=losses, tokens=tokens)})

    def embed(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Embeddings of the tokens.

        Raises:
            ValueError: The batch brings images.
        """
        if batch.num_images:
            raise ValueError(f"found {batch.num_images} images (samples {batch.ids[:5]}), expected text alone")
        return self.language.get_input_embeddings()(batch.tokens)

    def losses(self, batch: Batch) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        return lm_losses(self.language, self.embed(batch), batch)

    def generate(self, batch: Batch, decoding: Decoding) -> list[list[int]]:
        return generate(
            self.language,
            self.embed(batch),
            batch.segments > 0,
            decoding,
            eos=self.processor.eos_token_ids,
            pad=self.processor.pad_id,
            synced=self.sharded,
            stop=self.processor.stop,
        )

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file; bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "language": TINY_LLAMA,
    "max_length": 1024,
}

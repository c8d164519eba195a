"""A language model alone as a LightningModule: `nets/language_model.py` on text.

Which tokens are supervised is the chat template's choice: all of a text under `plain`, the answers of a conversation
under `vicuna_v1`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from lightning_mllm.contracts import ParamGroup, Stage
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.seq2seq import Seq2SeqLM
from lightning_mllm.language.tokenizer import language_tokenizer
from lightning_mllm.nets.language_model import LanguageModelNet
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

    net: LanguageModelNet

    stages: ClassVar[dict[str, Stage]] = {"pretrain": Stage(train={"language.*": ParamGroup()})}

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
        super().__init__(
            net=LanguageModelNet, components={"language": language}, processor=processor, stage=stage, decoding=decoding
        )

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file; bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "language": TINY_LLAMA,
    "max_length": 1024,
}

"""CogVLM (Wang et al. 2023, arXiv 2311.03079): a language model that gets a second set of weights for images.

The idea: the vectors of an image are foreign words to a frozen language model that they are put before (BLIP-2, LLaVA's
first stage). Here every block has a visual expert beside its own QKV, output and feed-forward, started as their copy,
that only image tokens go through; all tokens attend together. A text meets no expert, so the language model keeps what
it knows.

    images u8[N,3,H,W] --vision--> f[N,V,Dv] --connector--> f[N,V,D] --ends--> begin, V, end f[N,V+2,D] -.
    tokens i[B,T] --embedding--> f[B,T,D] ------------------ slots of begin, image and end overwritten --'
                                               |
                      .------------------------+------------------------.
                 text, end: QKV                     begin, image: QKV of the expert      |
                      '----- causal attention among all tokens ---------'                |  every block of language
                 text, end: output, feed-forward    begin, image: those of the expert    |
                      '------------------------+------------------------'
                                               |
                         head at supervised tokens -> cross-entropy

All vectors of an image have one position.

Legend: B rows, T tokens, N images, V vectors an image, Dv and D widths of tower and language model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.connectors.ends import Ends, EndsConnector
from lightning_mllm.connectors.glu import Glu, GluConnector
from lightning_mllm.contracts import Batch, Stage, TokenKind, Train
from lightning_mllm.evaluation.generation import Decoding
from lightning_mllm.language.causal import TINY_LLAMA
from lightning_mllm.language.tokenizer import language_tokenizer
from lightning_mllm.language.visual_expert import VisualExpertLM, idle_names, shared_positions
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.prompted import PromptedModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva2 import TINY_EVA2, Eva2Tower
from lightning_mllm.vision.eva2_keys import COGVLM_VISION_KEYS
from lightning_mllm.vision.tower import OpenClipTower
from lightning_mllm.weights.keymap import SPLIT_3, KeyMap, Rule

OURS, THEIRS = "language.model.layers.{n}", "model.layers.{n}"


def _routed(expert: str) -> list[Any]:
    """Lines of a block's two experts, `language` and `vision`; the released code has one matrix for their QKV."""
    parts = tuple(f"{OURS}.self_attn.{each}_proj.{expert}.{{...}}" for each in "qkv")
    return [
        (parts, f"{THEIRS}.self_attn.{expert}_expert_query_key_value.{{...}}", SPLIT_3),
        (f"{OURS}.self_attn.o_proj.{expert}.{{...}}", f"{THEIRS}.self_attn.{expert}_expert_dense.{{...}}"),
        (f"{OURS}.mlp.{expert}.{{...}}", f"{THEIRS}.mlp.{expert}_mlp.{{...}}"),
    ]


ORIGINAL_KEYS = COGVLM_VISION_KEYS.under("vision.", "model.vision.") + KeyMap(
    [
        Rule(ours=None, theirs=(f"{THEIRS}.self_attn.rotary_emb.inv_freq",)),  # a constant
        ("connector.{...}", "model.vision.linear_proj.{...}"),
        ("ends.begin", "model.vision.boi"),
        ("ends.end", "model.vision.eoi"),
        *_routed("language"),
        *_routed("vision"),
        *(
            (f"{OURS}.{norm}.{{...}}", f"{THEIRS}.{norm}.{{...}}")
            for norm in ("input_layernorm", "post_attention_layernorm")
        ),
        *((f"language.model.{name}.{{...}}", f"model.{name}.{{...}}") for name in ("embed_tokens", "norm")),
        ("language.lm_head.{...}", "lm_head.{...}"),
    ]
)
"""Ours <-> the authors' checkpoints on the hub (`CogVLMForCausalLM` of their remote code)."""

EXPERT = "language.*.vision.*"
FUSION = {"connector.*": Train(), "ends.*": Train(), EXPERT: Train()}
"""What all stages train (6.6B parameters with Vicuna 7B): all between a frozen tower and a frozen language model."""


class CogVLM(PromptedModule):
    """A vision tower, an adapter and a language model with visual experts.

    Args:
        vision: EVA2-CLIP-E, or a tower of open_clip.
        language: A language model with Llama's blocks, and which of its modules have an expert.
        connector: The adapter's inner width.
        ends: The vectors before and after an image.
        chat: A template of `processing/templates`, or "tokenizer" for the tokenizer's own.
        image: How images are fitted into the tower's square; None squashes them, as released.
        max_length: Tokens a row may have, visual slots included.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    stages: ClassVar[dict[str, Stage]] = {
        # Sec. 2.2: pre-training on captions, then on captions and boxes; tower and language model are frozen.
        "caption": Stage(train=FUSION),
        "grounding": Stage(train=FUSION),
        # Sec. 2.3: supervised fine-tuning, "the learning rate of the visual encoder is one-tenth" of the others'.
        "chat": Stage(train={"vision.*": Train(scale=0.1), **FUSION}),
        # The same in the paper's first version: all but the tower, the language model at a tenth.
        "chat_lm": Stage(train={**FUSION, "language.*": Train(scale=0.1, but=(EXPERT,))}),
        # The released finetune_cogvlm_demo.py (rank 10), but for what it adapts in the tower.
        "chat_lora": Stage(
            train={**FUSION, EXPERT: Train(but=("*.lora_*",)), "language.*.language.*lora_*": Train()}, lora=True
        ),
    }
    key_maps: ClassVar[dict[str, KeyMap]] = {"original": ORIGINAL_KEYS}
    slots: ClassVar[frozenset[TokenKind]] = frozenset({TokenKind.IMAGE_BEGIN, TokenKind.IMAGE, TokenKind.IMAGE_END})

    vision: nn.Module
    connector: Glu
    ends: Ends
    language: PreTrainedModel

    def __init__(
        self,
        vision: Eva2Tower | OpenClipTower,
        language: VisualExpertLM,
        connector: GluConnector = GluConnector(),
        ends: EndsConnector = EndsConnector(),
        chat: str = "cogvlm_chat",
        image: ImagePolicy | None = None,
        max_length: int = 2048,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        tokenizer = language_tokenizer(language)
        processor = Processor(
            tokenizer,
            load_template(chat, tokenizer),
            fitting(image, size=vision.image_size, mean=vision.mean, fit="squash"),
            vectors_per_image=vision.num_vectors,
            max_length=max_length,
            image_ends="vectors",
        )
        parts = {
            "vision": vision,
            "connector": replace(connector, in_width=vision.width, out_width=language.width),
            "ends": replace(ends, width=language.width),
            "language": language,
        }
        super().__init__(parts=parts, processor=processor, stage=stage, decoding=decoding)

    def prepared(self, batch: Batch) -> Batch:
        """All vectors of an image at one position: what stands in a picture is no sequence."""
        return replace(batch, positions=shared_positions(batch.kinds, batch.segments))

    def see(self, batch: Batch) -> Float[Tensor, "N V D"]:
        """What the language model is shown of each image, its begin and its end included."""
        visual = self.vision(batch.images).to(self.connector.norm1.weight.dtype)
        return self.ends(self.connector(visual))

    def idle(self) -> set[str]:
        return {f"language.{name}" for name in idle_names(self.language)}

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images of 4 patches, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "vision": TINY_EVA2,
    "connector": GluConnector(inner=48),
    "language": VisualExpertLM(config=TINY_LLAMA.config),
    "chat": "vicuna_v1",
    "max_length": 1024,
}

"""CogVLM in its published stages (Wang et al. 2023, arXiv 2311.03079); the net is drawn in `nets/cogvlm.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

from lightning_mllm.connectors.glu import GluConnector
from lightning_mllm.connectors.image_boundary import ImageBoundaryConnector
from lightning_mllm.connectors.spec import ConnectorSpec, with_widths
from lightning_mllm.contracts import ParamGroup, Stage
from lightning_mllm.language.causal import TINY_LLAMA
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.tokenizer import language_tokenizer
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.nets.cogvlm import CogVLMNet
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva2 import TINY_EVA2, Eva2Tower
from lightning_mllm.vision.tower import OpenClipTower

EXPERT = "language.*.vision.*"
FUSION = {"connector.*": ParamGroup(), "image_boundary.*": ParamGroup(), EXPERT: ParamGroup()}
"""What all stages train (6.6B parameters with Vicuna 7B): all between a frozen tower and a frozen language model."""


class CogVLM(MultimodalModule):
    """A vision tower, an adapter and a language model with visual experts.

    Args:
        vision: EVA2-CLIP-E, or a tower of open_clip.
        language: A language model with Llama's blocks, and which of its modules have an expert.
        connector: `GluConnector` with the adapter's inner width, or another that builds from two widths; None is the
            released adapter.
        image_boundary: The vectors before and after an image.
        chat: A template of `processing/templates`, or "tokenizer" for the tokenizer's own.
        image: How images are fitted into the tower's square; None squashes them, as released.
        max_length: Tokens a row may have, visual slots included.
        special_in_turns: Whether special tokens written in turns (`</s>`) are special tokens; else they are text.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    net: CogVLMNet

    stages: ClassVar[dict[str, Stage]] = {
        # Pre-training on captions, then on captions and boxes; tower and language model are frozen.
        "caption": Stage(train=FUSION),
        "grounding": Stage(train=FUSION),
        # Supervised fine-tuning: the tower too, at a tenth of the others' rate.
        "chat": Stage(train={"vision.*": ParamGroup(lr_scale=0.1), **FUSION}),
        # The same in the paper's first version: all but the tower, the language model at a tenth.
        "chat_lm": Stage(train={**FUSION, "language.*": ParamGroup(lr_scale=0.1, exclude=(EXPERT,))}),
        # The released finetune_demo/finetune_cogvlm_demo.py: adapters of attention in tower and language model, none of
        # the experts (sat/model/finetune/lora2.py: each of the tower's Q, K and V has an A of its own, here they share
        # one), and the tower's feed-forward in blocks 46 to 54, which experiments/cogvlm_17b/chat_lora.yaml names.
        "chat_lora": Stage(
            train={"language.*lora_*": ParamGroup(), "vision.*lora_*": ParamGroup()},
            lora=True,
            lora_targets=("language.*.self_attn.*.language", "vision.*.attn.*"),
        ),
    }

    def __init__(
        self,
        vision: Eva2Tower | OpenClipTower,
        language: VisualExpertLM,
        connector: ConnectorSpec | None = None,
        image_boundary: ImageBoundaryConnector = ImageBoundaryConnector(),
        chat: str = "cogvlm_chat",
        image: ImagePolicy | None = None,
        max_length: int = 2048,
        special_in_turns: bool = False,
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
            special_in_turns=special_in_turns,
            image_boundary="vectors",
            shared_positions=True,
        )
        components = {
            "vision": vision,
            "connector": with_widths(connector or GluConnector(), in_width=vision.width, out_width=language.width),
            "image_boundary": replace(image_boundary, width=language.width),
            "language": language,
        }
        super().__init__(net=CogVLMNet, components=components, processor=processor, stage=stage, decoding=decoding)

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images of 4 patches, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "vision": TINY_EVA2,
    "connector": GluConnector(inner=48),
    "language": VisualExpertLM(config=TINY_LLAMA.config),
    "max_length": 1024,
}

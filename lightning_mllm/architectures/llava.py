"""LLaVA and LLaVA-1.5 in their published stages; what the net computes is drawn in `nets/llava.py`.

Liu et al. 2023 (arXiv 2304.08485) and 2024 (arXiv 2310.03744): aligned on captions, then trained on conversations.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from lightning_mllm.connectors.projector import MlpConnector
from lightning_mllm.connectors.spec import ConnectorSpec, with_widths
from lightning_mllm.contracts import ParamGroup, Stage
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.tokenizer import language_tokenizer
from lightning_mllm.nets.llava import LlavaNet
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.limits import Masks
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.tower import OpenClipTower


class LLaVA(MultimodalModule):
    """A vision tower, a connector and a causal language model.

    Args:
        vision: The tower, its layer and what becomes of its class token.
        connector: `LinearConnector` (LLaVA), `MlpConnector` (LLaVA-1.5), or another that builds from two widths.
        language: Any causal language model of transformers.
        chat: A template of `processing/templates`, or "tokenizer" for the tokenizer's own.
        image: How images are fitted into the tower's square; None is CLIP's crop.
        max_length: Tokens a row may have, image slots included.
        masks: What becomes of samples in which nothing is learned (`Processor`); LLaVA keeps them.
        special_in_turns: Whether special tokens written in turns (`</s>`) are special tokens; else they are text.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    net: LlavaNet

    stages: ClassVar[dict[str, Stage]] = {
        "align": Stage(train={"connector.*": ParamGroup()}),
        "instruct": Stage(train={"connector.*": ParamGroup(), "language.*": ParamGroup()}),
        # ShareGPT4V (arXiv 2311.12793): the blocks of ViT-L/14 from 12 on (`--tune_vit_from_layer` of the released
        # slurm_pretrain_7b.sh), but for block 23, which layer -2 never reads and which is not built here.
        "pretrain": Stage(
            train={
                "connector.*": ParamGroup(),
                "language.*": ParamGroup(),
                "vision.transformer.resblocks.1[2-9].*": ParamGroup(),
                "vision.transformer.resblocks.2[0-2].*": ParamGroup(),
            }
        ),
        # 2e-5: `--mm_projector_lr` of the released finetune_lora.sh.
        "instruct_lora": Stage(train={"connector.*": ParamGroup(lr=2e-5), "language.*lora_*": ParamGroup()}, lora=True),
    }

    def __init__(
        self,
        vision: OpenClipTower,
        connector: ConnectorSpec,
        language: CausalLM,
        chat: str = "vicuna_v1",
        image: ImagePolicy | None = None,
        max_length: int = 2048,
        masks: Masks = "strict",
        special_in_turns: bool = False,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        image = fitting(image, size=vision.image_size, mean=vision.mean)
        tokenizer = language_tokenizer(language)
        processor = Processor(
            tokenizer,
            load_template(chat, tokenizer),
            image,
            vision.num_vectors,
            max_length,
            special_in_turns=special_in_turns,
            masks=masks,
        )
        components = {
            "vision": vision,
            "connector": with_widths(connector, in_width=vision.width, out_width=language.width),
            "language": language,
        }
        super().__init__(net=LlavaNet, components=components, processor=processor, stage=stage, decoding=decoding)

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images of 4 patches, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "vision": OpenClipTower(
        weights=None,
        config={
            "embed_dim": 16,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
            "text_cfg": {"context_length": 16, "vocab_size": 259, "width": 16, "heads": 2, "layers": 1},
        },
    ),
    "connector": MlpConnector(),
    "language": TINY_LLAMA,
    "max_length": 1024,
}

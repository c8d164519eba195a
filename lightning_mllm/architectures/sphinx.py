"""SPHINX (Lin et al. 2023, arXiv 2311.07575): mixed weights, mixed tasks, mixed embeddings, sub-images.

The idea: towers that learned differently see different things, so a language model is shown all of them at once; it is
trained with the projections from the first stage on, beside text alone so that it stays able to talk.

    images u8[N,3,H,W] --vision--> groups (f[N,V1,E1], f[N,V2,E2]) --connector--> f[N,V,D] --image_boundary--.
    tokens i[B,T] ---------------embedding--> f[B,T,D] --------------- slots of every view overwritten -------------'
                                                                  |
                                             language, causal in each segment -> hidden f[B,T,D]
                                                                  |
                                       head before supervised tokens, the first of which `end` predicts -> cross-entropy

Legend: B rows, T tokens, I images, N views (of each image a global one, then its parts), V vectors, E and D widths.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Self

from lightning_mllm.connectors.image_boundary import ImageBoundaryConnector
from lightning_mllm.connectors.mixed import MixedConnector
from lightning_mllm.connectors.spec import ViewsConnectorSpec, with_widths
from lightning_mllm.contracts import ParamGroup, Stage
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.tokenizer import language_tokenizer
from lightning_mllm.nets.sphinx import SphinxNet
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.limits import Masks
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.mixture import TINY_MIXTURE, MixedTower

TRAINED = {"connector.*": ParamGroup(), "image_boundary.*": ParamGroup(), "language.*": ParamGroup()}
"""Sec. 3.1: the projections and the whole language model, in both stages; the towers never."""


class Sphinx(MultimodalModule):
    """Mixed towers, a projection for each group of them, and a causal language model.

    Args:
        vision: The towers; members of one group are joined on their channels, groups stand one after another.
        language: Any causal language model of transformers.
        connector: `MixedConnector`, which may show the parts of an image with fewer vectors (`pool`), or another of
            groups and views; None shows all.
        chat: A template of `processing/templates`, or "tokenizer" for the tokenizer's own.
        image: How images are fitted and cut into views; None is one view, padded to a square.
        max_length: Tokens a row may have, visual slots included.
        masks: What becomes of samples in which nothing is learned (`Processor`). SPHINX's released code cuts a row and
            keeps it, whatever is left to learn (LLaMA2-Accessory, accessory/data/conversation/dataset.py).
        special_in_turns: Whether special tokens written in turns (`</s>`) are special tokens; else they are text.
        stage: What to train; None for use only.
        decoding: Task -> how its answers are generated.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    net: SphinxNet

    stages: ClassVar[dict[str, Stage]] = {"pretrain": Stage(train=TRAINED), "instruct": Stage(train=TRAINED)}

    def __init__(
        self,
        vision: MixedTower,
        language: CausalLM,
        connector: ViewsConnectorSpec | None = None,
        chat: str = "sphinx",
        image: ImagePolicy | None = None,
        max_length: int = 2048,
        masks: Masks = "strict",
        special_in_turns: bool = False,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        image = fitting(image, size=vision.image_size, mean=vision.mean, fit="pad")
        connector = with_widths(connector or MixedConnector(), in_widths=vision.widths, out_width=language.width)
        tokenizer = language_tokenizer(language)
        processor = Processor(
            tokenizer,
            load_template(chat, tokenizer),
            image,
            vectors_per_image=connector.vectors(vision.vectors, image.num_views),
            max_length=max_length,
            special_in_turns=special_in_turns,
            image_boundary="vectors",
            masks=masks,
        )
        components = {
            "vision": vision,
            "connector": connector,
            "image_boundary": ImageBoundaryConnector(width=language.width, start="uniform"),
            "language": language,
        }
        net = partial(SphinxNet, views=image.num_views)
        super().__init__(net=net, components=components, processor=processor, stage=stage, decoding=decoding)

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px views, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {"vision": TINY_MIXTURE, "language": TINY_LLAMA, "max_length": 1024}

"""CLIP as a LightningModule: components, processor and stage of `nets/clip.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Self

from lightning_mllm.contracts import Batch, ParamGroup, Sample, Stage, Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.tokenizer import load_tokenizer
from lightning_mllm.nets.clip import ClipNet
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.clip import OpenClipModel


class ClipPretraining(MultimodalModule):
    """Contrastive training of both towers of an open_clip model on images and captions.

    The negatives of a pair are the others of its own micro-batch on its own rank, so a micro-batch is here a published
    number and not one of the hardware.

    Args:
        clip: Both towers. Its text tower must take the vector at the tokenizer's end token: `pool_type: eos` with that
            `eos_id`, or `argmax` where it is the last of the vocabulary.
        tokenizer: A folder (may start with `package:`) or a name on the hub; "" takes bytes as tokens.
        image: How images are fitted into the tower's square; None is CLIP's crop.
        stage: What to train; None for use only.

    Raises:
        ValueError: The parts do not fit one another, or one of them is not there.
    """

    net: ClipNet  # pyright: ignore[reportIncompatibleVariableOverride]

    packs = False
    stages: ClassVar[dict[str, Stage]] = {"contrast": Stage(train={"clip.*": ParamGroup()})}

    def __init__(
        self,
        clip: OpenClipModel,
        tokenizer: str = "",
        image: ImagePolicy | None = None,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
    ) -> None:
        image = image or ImagePolicy(size=clip.image_size, fit="crop", mean=clip.source.statistics()[0])
        if image.size != clip.image_size:
            raise ValueError(f"image.size: found {image.size}, expected {clip.image_size}, which the tower takes")
        words = load_tokenizer(tokenizer)
        end: Any = words.eos_token_id
        if len(words) > clip.vocab:
            raise ValueError(f"tokenizer: found {len(words)} tokens, expected at most {clip.vocab}, clip's vocab_size")
        pool = clip.text_config.get("pool_type", "argmax")
        reads = {"eos": clip.text_config.get("eos_id", 2), "argmax": len(words) - 1}
        if end is None or reads.get(pool) != end:
            raise ValueError(
                f"clip: text_cfg takes the vector at token {reads.get(pool)} (pool_type {pool}), expected the"
                f" tokenizer's end token {end}, as pool_type eos with eos_id {end}"
            )
        if clip.text_config.get("no_causal_mask"):
            raise ValueError("clip: found text_cfg.no_causal_mask, expected a causal text tower, which sees no padding")
        processor = Processor(words, load_template("plain", words), image, 0, clip.context_length)
        mean, std = clip.source.statistics()
        net = partial(ClipNet, mean=mean, std=std, end=int(end))
        super().__init__(net=net, components={"clip": clip}, processor=processor, stage=stage, decoding=decoding)

    def answers(self, batch: Batch, part: str = "") -> list[str]:
        """For each image the nearest of the batch's captions (the first reference of each row)."""
        return self.retrieve(batch, [references[0] for references in batch.references])

    def retrieve(self, batch: Batch, captions: Sequence[str]) -> list[str]:
        """For each image the nearest of `captions`."""
        rows = [
            self.processor.encode(Sample(id=f"caption {i}", turns=(Turn(role="assistant", text=caption),)))
            for i, caption in enumerate(captions)
        ]
        written = self.processor.collate(rows).to(batch.images.device)
        nearest = (self.net.encode_images(batch) @ self.net.encode_texts(written.tokens, written.segments).T).argmax(1)
        return [captions[int(i)] for i in nearest]

    @classmethod
    def tiny(cls, **settings: Any) -> Self:
        """A net of random values that needs no file: 16 px images of 4 patches, bytes as tokens."""
        return cls(**{**TINY, **settings})


TINY: dict[str, Any] = {
    "clip": OpenClipModel(
        config={
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
            "text_cfg": {
                "context_length": 64,
                "vocab_size": 259,
                "width": 32,
                "heads": 2,
                "layers": 2,
                "pool_type": "eos",
                "eos_id": 2,
            },
        },
    ),
}

"""LLaVA (Liu et al. 2023, arXiv 2304.08485) and LLaVA-1.5 (Liu et al. 2024, arXiv 2310.03744).

The idea: a frozen CLIP already sees and a language model already talks, so a linear layer (1.5: two) between them is
enough; it is aligned on captions first, then trained with the language model on conversations about images.

    images u8[N,3,H,W] --vision--> f[N,V,Dv] --connector--> visual f[N,V,D] -.
    tokens i[B,T] -----------------embedding--> f[B,T,D] --- IMAGE slots overwritten by visual
                                                                  |
                                             language, causal in each segment -> hidden f[B,T,D]
                                                                  |
                                              head at supervised tokens -> cross-entropy

Legend: B rows, T tokens, N images, V vectors an image, Dv and D widths of tower and language model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, LlavaConfig, LlavaProcessor, PreTrainedModel

from lightning_mllm.connectors.projector import Linear, LinearConnector, Mlp, MlpConnector
from lightning_mllm.connectors.spec import ConnectorSpec, with_widths
from lightning_mllm.contracts import IMAGE_MARK, Batch, ParamGroup, Stage
from lightning_mllm.evaluation.generation import Decoding
from lightning_mllm.language.causal import TINY_LLAMA, CausalLM
from lightning_mllm.language.lora import merge_lora
from lightning_mllm.language.tokenizer import folder_chat, language_tokenizer
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.images import ImagePolicy, fitting
from lightning_mllm.processing.limits import Masks
from lightning_mllm.processing.processor import Processor
from lightning_mllm.training.prompted import PromptedModule
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.clip_hf import clip_config, open_clip_config
from lightning_mllm.vision.clip_keys import CLIP_KEYS
from lightning_mllm.vision.tower import OpenClipTower, VisionTower
from lightning_mllm.weights.hf import (
    HfFolder,
    generation_config,
    image_fit,
    image_processor,
    image_settings,
    language_tensors,
    multimodal_tokenizer,
    notes,
    padded_rows,
    spare_token,
)
from lightning_mllm.weights.hf_template import folder_template
from lightning_mllm.weights.keymap import KeyMap, Rule


def _one_layer(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    """A folder's connector has always two layers; this act says that the second is the identity, added on export."""
    return config.get("projector_hidden_act") == "linear"


def _behind(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    """Whether block `n` of the authors' tower, always a CLIP ViT-L of 24, lies behind the layer that is used."""
    return int(fields["n"]) > 24 + config.get("mm_vision_select_layer", -2)


CLASSIC, AUTHORS = "vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."
ROTARY = "layers.{n}.self_attn.rotary_emb.inv_freq"
"""A constant that files of old times hold."""

HF_KEYS = KeyMap(
    CLIP_KEYS.under("vision.", CLASSIC).table
    + KeyMap(
        (
            Rule(ours="connector.linear.{...}", theirs=("multi_modal_projector.linear_1.{...}",), when=_one_layer),
            Rule(ours=None, theirs=("multi_modal_projector.linear_2.{...}",), when=_one_layer),
            ("connector.linear_1.{...}", "multi_modal_projector.linear_1.{...}"),
            ("connector.linear_2.{...}", "multi_modal_projector.linear_2.{...}"),
            Rule(ours=None, theirs=(f"language_model.model.{ROTARY}",)),
            ("language.{...}", "language_model.{...}"),
        )
    ).table,
    # transformers 5 writes the tower's names one level higher.
    aliases=[
        (f"vision_tower.{part}.{{...}}", f"{CLASSIC}{part}.{{...}}")
        for part in ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
    ],
)
"""Ours <-> files of transformers' `LlavaForConditionalGeneration`, in the layout that every engine reads."""

ORIGINAL_KEYS = KeyMap(
    KeyMap((Rule(ours=None, theirs=(f"{AUTHORS}encoder.layers.{{n}}.{{...}}",), when=_behind),)).table
    + CLIP_KEYS.under("vision.", AUTHORS).table
    + KeyMap(
        (
            ("connector.linear_1.{...}", "model.mm_projector.0.{...}"),
            ("connector.linear_2.{...}", "model.mm_projector.2.{...}"),
            ("connector.linear.weight", "model.mm_projector.weight"),
            ("connector.linear.bias", "model.mm_projector.bias"),
            Rule(ours=None, theirs=(f"model.{ROTARY}",)),
            ("language.model.{...}", "model.{...}"),
            ("language.lm_head.{...}", "lm_head.{...}"),
        )
    ).table,
    # The released LoRA script's `non_lora_trainables.bin`, and projectors saved without the model's own name.
    aliases=[
        ("base_model.model.model.mm_projector.{...}", "model.mm_projector.{...}"),
        ("mm_projector.{...}", "model.mm_projector.{...}"),
    ],
)
"""Ours <-> the authors' checkpoints, whole ones and `mm_projector.bin`."""


class LLaVA(PromptedModule):
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

    stages: ClassVar[dict[str, Stage]] = {
        "align": Stage(train={"connector.*": ParamGroup()}),
        "instruct": Stage(train={"connector.*": ParamGroup(), "language.*": ParamGroup()}),
        # 2e-5: `--mm_projector_lr` of the released finetune_lora.sh.
        "instruct_lora": Stage(train={"connector.*": ParamGroup(lr=2e-5), "language.*lora_*": ParamGroup()}, lora=True),
    }
    key_maps: ClassVar[dict[str, KeyMap]] = {"hf": HF_KEYS, "original": ORIGINAL_KEYS}
    hf_class: ClassVar[str] = "LlavaForConditionalGeneration"

    vision: VisionTower
    connector: nn.Module
    language: PreTrainedModel

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
        parts = {
            "vision": vision,
            "connector": with_widths(connector, in_width=vision.width, out_width=language.width),
            "language": language,
        }
        super().__init__(parts=parts, processor=processor, stage=stage, decoding=decoding)

    def encode_images(self, batch: Batch) -> Float[Tensor, "N V D"]:
        """What the language model is shown of each image."""
        return self.connector(self.vision(batch.images))

    def hf(self) -> HfFolder:
        """The net as a folder of transformers' LLaVA: adapters merged, special tokens added where missing.

        Blocks behind the used layer are no part of the net: the folder's tower ends there, and its last layer is read.

        Raises:
            ValueError: A connector that is neither of LLaVA's, or of more than two layers, a norm behind the tower,
                several views of an image, or embeddings narrower than the language model: transformers has no place.
        """
        linear = isinstance(self.connector, Linear)
        if not isinstance(self.connector, Linear | Mlp):
            found = type(self.components["connector"]).__name__
            raise ValueError(f"connector: found {found}, expected LinearConnector or MlpConnector to be exported")
        if isinstance(self.connector, Mlp) and self.connector.depth != 2:
            raise ValueError(f"connector.depth: found {self.connector.depth}, expected 2, all that transformers knows")
        own: Processor = self.processor
        if own.image.views != 1:
            raise ValueError(f"image.views: found {own.image.views}, expected 1, all that transformers' LLaVA knows")
        chat = folder_template(own.chat)
        tokenizer = multimodal_tokenizer(own.tokenizer, chat, max_length=own.max_length, begins=not own.chat.writes_bos)
        vision = clip_config(self.vision, own.image.size)
        text = self.language.config.to_dict()
        text["vocab_size"] = padded_rows(text["vocab_size"], max(tokenizer.get_vocab().values()) + 1)
        if (width := self.language.get_input_embeddings().embedding_dim) != (
            hidden := self.language.config.hidden_size
        ):
            raise ValueError(
                f"language.word_embed_proj_dim: found {width}, expected {hidden}, the width that transformers' LLaVA"
                " projects to"
            )
        if not hasattr(self.language.base_model, "embed_tokens"):
            # transformers' LLaVA ties a head to that name alone; OPT's table has another, so its head is written too.
            text["tie_word_embeddings"] = False
        select = "full" if self.vision.keep_cls else "default"
        mean, std = (tuple(each.flatten().tolist()) for each in (self.vision.mean, self.vision.std))
        return HfFolder(
            config=LlavaConfig(
                vision_config=vision,
                text_config=AutoConfig.for_model(**text),
                tie_word_embeddings=text["tie_word_embeddings"],
                image_token_index=tokenizer.get_vocab()[IMAGE_MARK],
                image_seq_length=own.vectors_per_image,
                projector_hidden_act="linear" if linear else "gelu",
                vision_feature_layer=-1,
                vision_feature_select_strategy=select,
                architectures=[self.hf_class],
                dtype=self.language.dtype,
            ),
            processor=LlavaProcessor(
                image_processor(own.image.size, own.image.fit, mean, std),
                tokenizer,
                patch_size=vision.patch_size,
                vision_feature_select_strategy=select,
                chat_template=chat,
                num_additional_image_tokens=1,  # the class token, which "default" takes off again
            ),
            generation=generation_config(own, pad_token_id=tokenizer.pad_token_id),
            tensors=lambda: self._hf_tensors(text["vocab_size"], text["tie_word_embeddings"]),
            logits=self.logits,
            notes={
                "chat": own.chat.name,
                "image": asdict(own.image),
                "max_length": own.max_length,
                "special_in_turns": own.special_in_turns,
                "decoding": {task: asdict(how) for task, how in self.decoding.items()},
            },
        )

    def _hf_tensors(self, rows: int, tied: bool) -> Iterator[tuple[str, Tensor]]:
        state = self.state_dict()
        if self.lora is not None:
            state = merge_lora(state, self.lora.scale)
        like = spare_token(self.processor.tokenizer)
        yield from HF_KEYS.to_theirs(language_tensors(state, self.language, rows, like, tied))
        # transformers builds the norm behind the tower, and never runs it.
        width = self.vision.class_embedding
        yield f"{CLASSIC}post_layernorm.weight", torch.ones_like(width)
        yield f"{CLASSIC}post_layernorm.bias", torch.zeros_like(width)
        if isinstance(self.connector, Linear):
            bias = self.connector.linear.bias
            yield "multi_modal_projector.linear_2.weight", torch.eye(len(bias), dtype=bias.dtype, device=bias.device)
            yield "multi_modal_projector.linear_2.bias", torch.zeros_like(bias)

    @classmethod
    def from_hf(cls, folder: Path, chat: str | None = None) -> Self:
        """The net of a folder of transformers' LLaVA, its parts without weights.

        Chat template and image policy are those that an export of ours notes, or else the folder's own.

        Args:
            folder: Of transformers.
            chat: Another template than the folder's.

        Raises:
            ValueError: A tower or connector that this architecture does not have, or a folder without a chat template
                where none is named.
        """
        config: Any = AutoConfig.from_pretrained(folder)
        known, images, text = notes(folder), image_settings(folder), config.text_config
        if (kind := config.vision_config.model_type) != "clip_vision_model":
            raise ValueError(f"{folder}, vision_config.model_type: found {kind!r}, expected 'clip_vision_model'")
        if (act := config.projector_hidden_act) not in ("gelu", "linear"):
            raise ValueError(f"{folder}, projector_hidden_act: found {act!r}, expected gelu or linear")
        mean, std = tuple(images["image_mean"]), tuple(images["image_std"])
        size = config.vision_config.image_size
        policy = known.get("image") or {"size": size, "fit": image_fit(images), "mean": mean}
        return cls(
            vision=OpenClipTower(
                weights=None,
                layer=config.vision_feature_layer,
                cls="keep" if config.vision_feature_select_strategy == "full" else "drop",
                config=open_clip_config(config.vision_config, mean, std),
            ),
            connector=LinearConnector() if act == "linear" else MlpConnector(),
            language=CausalLM(
                model=str(folder),
                weights=None,
                dtype=str(config.dtype or "float32").removeprefix("torch."),
                config={"model_type": text.model_type, **text.to_diff_dict()},
            ),
            chat=chat or known.get("chat") or folder_chat(folder),
            image=ImagePolicy(**{**policy, "mean": tuple(policy["mean"])}),
            max_length=known.get("max_length", 2048),
            special_in_turns=known.get("special_in_turns", False),
            decoding={task: Decoding(**how) for task, how in known.get("decoding", {}).items()},
        )

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

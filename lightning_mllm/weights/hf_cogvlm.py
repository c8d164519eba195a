"""Folders of CogVLM: the names and the configuration of the public checkpoints, and code of ours for transformers.

transformers has no class for CogVLM. A folder of ours brings one (`weights/remote`), and one that its authors wrote
brings theirs, which is never run here: all that is read of a folder is JSON, tensors and a tokenizer.

What the public layout has no word for stands in config.json too, beside its own fields: which blocks have experts
(`visual_expert`), a CLIP in place of EVA2 and the adapter's inner width (`vision_config`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_mllm.weights.files import resource
from lightning_mllm.weights.hf import (
    HfFolder,
    generation_config,
    image_fit,
    image_processor,
    image_settings,
    language_tensors,
    notes,
)
from lightning_mllm.weights.hf_tokenizer import padded_left
from lightning_mllm.weights.remote.configuration_cogvlm import CogVLMConfig
from lightning_mllm.weights.remote.processing_cogvlm import CogVLMProcessor

TEMPLATES = {"base": "cogvlm_base", "vqa": "cogvlm_vqa", "chat": "cogvlm_chat"}
"""What config.json calls a way of asking (`template_version`) -> our template."""

TOKENIZER = "lmsys/vicuna-7b-v1.5"
"""That of the public checkpoints, which hold none."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's, for folders without image settings (fact of the released code)."""

AUTO_MAP = {
    "AutoConfig": "configuration_cogvlm.CogVLMConfig",
    "AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM",
    "AutoModelForImageTextToText": "modeling_cogvlm.CogVLMForCausalLM",
    "AutoProcessor": "processing_cogvlm.CogVLMProcessor",
}


def cogvlm_folder(
    net: Any,
    *,
    vision: dict[str, Any],
    chat: str,
    tensors: Callable[[], Mapping[str, Tensor]],
    rename: Callable[[Iterator[tuple[str, Tensor]]], Iterator[tuple[str, Tensor]]],
) -> HfFolder:
    """A CogVLM as a folder.

    Args:
        net: With `processor`, `language`, `connector`, `vision`, `experts`, `decoding`, `logits` and `hf_class`.
        vision: Fields of `vision_config`.
        chat: The chat template (jinja).
        tensors: Gives those of the net.
        rename: Gives them their names on disk.

    Raises:
        ValueError: A language model that is none of Llama's, or more than one view an image.
    """
    own, language = net.processor, net.language
    if own.image.num_views != 1:
        raise ValueError(f"image.views: found {own.image.num_views}, expected 1, all that CogVLM's layout knows")
    tokenizer: Any = padded_left(own.tokenizer, own.max_length)
    tokenizer.chat_template = chat
    mean, std = (tuple(each.flatten().tolist()) for each in (net.vision.mean, net.vision.std))
    versions = {name: version for version, name in TEMPLATES.items()}
    config = CogVLMConfig(
        **_language_fields(language.config),
        vision_config={**vision, "adapter_size": net.connector.gate_proj.out_features},
        visual_expert=net.experts,
        template_version=versions.get(own.chat.name, "base"),
        image_token_id=own.image_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=own.pad_id,
        architectures=[net.hf_class],
        auto_map={name: place for name, place in AUTO_MAP.items() if name != "AutoProcessor"},
        dtype=language.dtype,
    )
    processor = CogVLMProcessor(
        image_processor(own.image.size, own.image.fit, mean, std),
        tokenizer,
        num_image_tokens=own.vectors_per_image + 2,
        image_token_id=own.image_id,
        writes_begin=not own.chat.writes_bos,
        chat_template=chat,
    )
    processor.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}  # pyright: ignore
    rows = language.config.vocab_size
    return HfFolder(
        config=config,
        processor=processor,
        generation=generation_config(own, pad_token_id=own.pad_id),
        tensors=lambda: _tensors(net, rename(language_tensors(tensors(), language, rows, 0))),
        logits=net.logits,
        code=tuple(sorted(resource("package:weights/remote").glob("*_cogvlm.py"))),
        notes={
            "chat": own.chat.name,
            "image": asdict(own.image),
            "max_length": own.max_length,
            "special_in_turns": own.special_in_turns,
            "decoding": {task: asdict(how) for task, how in net.decoding.items()},
        },
    )


def _tensors(net: Any, named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    yield from named
    # Computed here, so no tensor of the net.
    if (positions := getattr(net.vision, "output_position_embedding", None)) is not None:
        yield "model.vision.output_position_embedding", positions


LANGUAGE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)
"""Of Llama's configuration, what CogVLM's calls the same."""


def _language_fields(config: Any) -> dict[str, Any]:
    """Of CogVLM's configuration, what the language model's says.

    Raises:
        ValueError: It is no Llama, or one that CogVLM's layout has no place for.
    """
    _refuse("model_type", config.model_type, "llama")
    rope, heads, shared = config.rope_parameters, config.num_attention_heads, config.num_key_value_heads
    _refuse("rope_parameters.rope_type", rope["rope_type"], "default")
    _refuse("head_dim", config.head_dim, config.hidden_size // heads)
    # The rows of queries in a fused bias could not be told from those of keys and values.
    _refuse("attention_bias", config.attention_bias and shared != heads, False)
    return {
        **{name: getattr(config, name) for name in LANGUAGE_FIELDS},
        "num_multi_query_heads": None if shared == heads else shared,
        "rope_theta": rope["rope_theta"],
    }


def _refuse(name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(f"language.{name}: found {found!r}, expected {expected!r}, all that CogVLM's layout knows")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a folder says, a public checkpoint's or one that we wrote."""

    config: CogVLMConfig
    tokenizer: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image: dict[str, Any]
    """Fields of an `ImagePolicy`."""
    notes: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Of a folder of CogVLM; nothing in it is run."""
        config = CogVLMConfig.from_pretrained(folder)
        known, size = notes(folder), config.vision_config["image_size"]
        try:
            images = image_settings(folder)
        except ValueError:
            images = {"image_mean": MEAN, "image_std": STD, "do_center_crop": False}
        mean, std = tuple(images["image_mean"]), tuple(images["image_std"])
        policy = known.get("image") or {"size": size, "fit": image_fit(images), "mean": mean}
        own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
        return cls(
            config=config,
            tokenizer=str(folder) if own else TOKENIZER,
            mean=mean,
            std=std,
            image={**policy, "mean": tuple(policy["mean"])},
            notes=known,
        )

    @property
    def language(self) -> dict[str, Any]:
        """The language model's configuration."""
        config = self.config
        return {
            "model_type": "llama",
            **{name: getattr(config, name) for name in LANGUAGE_FIELDS},
            "num_key_value_heads": config.num_multi_query_heads or config.num_attention_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            **{f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")},
        }

    @property
    def experts(self) -> dict[str, Any]:
        """Which blocks have experts, and for what; all, where nothing is said."""
        found = getattr(self.config, "visual_expert", None) or {"every": 1, "parts": ("qkv", "output", "ffn")}
        return {"every": found["every"], "parts": tuple(found["parts"])}

    @property
    def chat(self) -> str:
        """The template."""
        return self.notes.get("chat") or TEMPLATES.get(self.config.template_version, TEMPLATES["chat"])

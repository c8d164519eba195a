"""Folders of CogVLM: the names and the configuration of the public checkpoints, and code of ours for transformers.

transformers has no class for CogVLM. A folder of ours brings one (`remote/`), and one that its authors wrote
brings theirs, which is never run here: all that is read of a folder is JSON, tensors and a tokenizer.

What the public layout has no word for stands in config.json too, beside its own fields: which blocks have experts
(`visual_expert`), a CLIP in place of EVA2 and the adapter's inner width (`vision_config`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from lightning_mllm.connectors.glu import Glu, GluConnector
from lightning_mllm.interop.chat_template import folder_template
from lightning_mllm.interop.cogvlm.keys import KEYS
from lightning_mllm.interop.cogvlm.remote.configuration_cogvlm import CogVLMConfig
from lightning_mllm.interop.cogvlm.remote.processing_cogvlm import CogVLMProcessor
from lightning_mllm.interop.cogvlm.tower import cogvlm_tower, cogvlm_vision
from lightning_mllm.interop.folder import FolderFacts, generation_config, image_processor, language_tensors, notes_of
from lightning_mllm.interop.format import HfFolder, Settings, Tensors, TrainedNet
from lightning_mllm.interop.tokenizer import padded_left
from lightning_mllm.language.visual_expert_lm import VisualExpertLM

CODE = tuple(sorted((Path(__file__).parent / "remote").glob("*_cogvlm.py")))
"""What a folder brings for transformers."""

TEMPLATES = {"base": "cogvlm_base", "vqa": "cogvlm_vqa", "chat": "cogvlm_chat"}
"""What config.json calls a way of asking (`template_version`) -> our template."""

TOKENIZER = "lmsys/vicuna-7b-v1.5"
"""That of the public checkpoints, which hold none."""

IMAGES: Settings = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_center_crop": False,
}
"""OpenAI CLIP's statistics, for folders without image settings (fact of the released code)."""

AUTO_MAP = {
    "AutoConfig": "configuration_cogvlm.CogVLMConfig",
    "AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM",
    "AutoModelForImageTextToText": "modeling_cogvlm.CogVLMForCausalLM",
    "AutoProcessor": "processing_cogvlm.CogVLMProcessor",
}


def write(net: TrainedNet) -> HfFolder:
    """A CogVLM as a folder, with code of ours for transformers; adapters merged.

    Raises:
        ValueError: A tower, a connector or a language model that the layout cannot hold, or more than one view an
            image.
    """
    own, vision, connector, language = net.processor, net.net.vision, net.net.connector, net.net.language
    assert isinstance(vision, nn.Module) and isinstance(language, PreTrainedModel)
    if not isinstance(connector, Glu):
        found = type(net.components["connector"]).__name__
        raise ValueError(f"connector: found {found}, expected GluConnector to be exported")
    if own.image.num_views != 1:
        raise ValueError(f"image.views: found {own.image.num_views}, expected 1, all that CogVLM's layout knows")
    chat, experts = folder_template(own.chat), net.components["language"]
    assert isinstance(experts, VisualExpertLM)
    tokenizer: Any = padded_left(own.tokenizer, own.max_length)
    tokenizer.chat_template = chat
    versions = {name: version for version, name in TEMPLATES.items()}
    config = CogVLMConfig(
        **_language_fields(language.config),
        vision_config={**cogvlm_vision(vision, own.image.size), "adapter_size": connector.gate_proj.out_features},
        visual_expert={"every": experts.every, "parts": list(experts.parts)},
        template_version=versions.get(own.chat.name, "base"),
        image_token_id=own.image_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=own.pad_id,
        architectures=["CogVLMForCausalLM"],
        auto_map={name: file for name, file in AUTO_MAP.items() if name != "AutoProcessor"},
        dtype=language.dtype,
    )
    processor = CogVLMProcessor(
        image_processor(own.image, vision),
        tokenizer,
        num_image_tokens=own.vectors_per_image + 2,
        image_token_id=own.image_id,
        writes_begin=not own.chat.writes_bos,
        chat_template=chat,
    )
    processor.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}  # pyright: ignore
    return HfFolder(
        config=config,
        processor=processor,
        generation=generation_config(own, pad_token_id=own.pad_id),
        tensors=lambda: _tensors(net, language),
        code=CODE,
        notes=notes_of(net),
    )


def _tensors(net: TrainedNet, language: PreTrainedModel) -> Tensors:
    yield from KEYS.to_theirs(language_tensors(net.state(), language, language.config.vocab_size, 0))
    # Computed here, so no tensor of the state.
    if (positions := getattr(net.net.vision, "output_position_embedding", None)) is not None:
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


def _language_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Of CogVLM's configuration, what the language model's says.

    Raises:
        ValueError: It is no Llama, or one that CogVLM's layout cannot hold.
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


def _refuse(name: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"language.{name}: found {found!r}, expected {expected!r}, all that CogVLM's layout knows")


def read(folder: Path, chat: str | None) -> dict[str, object]:
    """The arguments of CogVLM for the net of a folder in the public checkpoints' layout; no code in it is run.

    Template, image policy and limits are those that an export of ours notes; other folders take the template that they
    name, the released image preparation and, if they have none of their own, Vicuna's tokenizer.

    Raises:
        ValueError: A tower that is not known here.
    """
    config = CogVLMConfig.from_pretrained(folder)
    vision: Any = config.vision_config
    facts = FolderFacts.read(folder, vision["image_size"], default=IMAGES)
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    # All of them, where nothing is said.
    experts = getattr(config, "visual_expert", None) or {"every": 1, "parts": ("qkv", "output", "ffn")}
    return {
        "vision": cogvlm_tower(vision, facts.mean, facts.std),
        "language": VisualExpertLM(
            model=str(folder) if own else TOKENIZER,
            weights=None,
            dtype=str(config.dtype or "float32").removeprefix("torch."),
            config=_llama(config),
            every=experts["every"],
            parts=tuple(experts["parts"]),
        ),
        "connector": GluConnector(inner=vision["adapter_size"] or config.intermediate_size),
        "chat": chat or facts.notes.get("chat") or TEMPLATES.get(config.template_version, TEMPLATES["chat"]),
        "special_in_turns": facts.notes.get("special_in_turns", False),
        **facts.settings(max_length=2048),
    }


def _llama(config: CogVLMConfig) -> dict[str, Any]:
    """The language model's configuration."""
    return {
        "model_type": "llama",
        **{name: getattr(config, name) for name in LANGUAGE_FIELDS},
        "num_key_value_heads": config.num_multi_query_heads or config.num_attention_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        **{f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    }

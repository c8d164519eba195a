"""Folders of transformers' LLaVA (`LlavaForConditionalGeneration`), in the layout that every engine reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, LlavaConfig, LlavaProcessor, PreTrainedModel

from lightning_mllm.connectors.projector import Linear, LinearConnector, Mlp, MlpConnector
from lightning_mllm.contracts import IMAGE_MARK
from lightning_mllm.interop.chat_template import folder_template
from lightning_mllm.interop.folder import (
    FolderFacts,
    generation_config,
    image_processor,
    language_tensors,
    notes_of,
    padded_rows,
)
from lightning_mllm.interop.format import Format, HfFolder, Tensors, TrainedNet
from lightning_mllm.interop.hf_components import clip_config, language_spec, open_clip_config
from lightning_mllm.interop.keys.clip import CLIP_KEYS
from lightning_mllm.interop.tokenizer import multimodal_tokenizer, spare_token
from lightning_mllm.language.tokenizer import folder_chat
from lightning_mllm.vision.encoder import VisionTower
from lightning_mllm.vision.tower import OpenClipTower
from lightning_mllm.weights.keymap import KeyMap, Rule

TOWER = "vision_tower.vision_model."


def _one_layer(config: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    """A folder's connector has always two layers; this act says that the second is the identity, added on export."""
    return config.get("projector_hidden_act") == "linear"


KEYS = KeyMap(
    CLIP_KEYS.under("vision.", TOWER).table
    + KeyMap(
        (
            Rule(ours="connector.linear.{...}", theirs=("multi_modal_projector.linear_1.{...}",), when=_one_layer),
            Rule(ours=None, theirs=("multi_modal_projector.linear_2.{...}",), when=_one_layer),
            ("connector.linear_1.{...}", "multi_modal_projector.linear_1.{...}"),
            ("connector.linear_2.{...}", "multi_modal_projector.linear_2.{...}"),
            # A constant that files of old times hold.
            Rule(ours=None, theirs=("language_model.model.layers.{n}.self_attn.rotary_emb.inv_freq",)),
            ("language.{...}", "language_model.{...}"),
        )
    ).table,
    # transformers 5 writes the tower's names one level higher.
    aliases=[
        (f"vision_tower.{part}.{{...}}", f"{TOWER}{part}.{{...}}")
        for part in ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
    ],
)
"""Ours <-> theirs."""


def write(net: TrainedNet) -> HfFolder:
    """A LLaVA as a folder; adapters merged.

    Raises:
        ValueError: A connector, a tower, a language model or an image policy that transformers' LLaVA cannot hold.
    """
    vision, connector, language = net.net.vision, net.net.connector, net.net.language
    assert (
        isinstance(vision, VisionTower) and isinstance(connector, nn.Module) and isinstance(language, PreTrainedModel)
    )
    _check_connector(net, connector)
    own = net.processor
    if own.image.views != 1:
        raise ValueError(f"image.views: found {own.image.views}, expected 1, all that transformers' LLaVA knows")
    chat = folder_template(own.chat)
    tokenizer = multimodal_tokenizer(own.tokenizer, chat, max_length=own.max_length, begins=not own.chat.writes_bos)
    tower, text = clip_config(vision, own.image.size), language.config.to_dict()
    text["vocab_size"] = padded_rows(text["vocab_size"], max(tokenizer.get_vocab().values()) + 1)
    embedding: Any = language.get_input_embeddings()
    if (width := embedding.embedding_dim) != (hidden := text["hidden_size"]):
        raise ValueError(
            f"language.word_embed_proj_dim: found {width}, expected {hidden}, the width that transformers' LLaVA"
            " projects to"
        )
    if not hasattr(language.base_model, "embed_tokens"):
        # transformers' LLaVA ties a head to that name alone; OPT's table has another, so its head is written too.
        text["tie_word_embeddings"] = False
    select = "full" if vision.keep_cls else "default"
    return HfFolder(
        config=LlavaConfig(
            vision_config=tower,
            text_config=AutoConfig.for_model(**text),
            tie_word_embeddings=text["tie_word_embeddings"],
            image_token_index=tokenizer.get_vocab()[IMAGE_MARK],
            image_seq_length=own.vectors_per_image,
            projector_hidden_act="linear" if isinstance(connector, Linear) else "gelu",
            vision_feature_layer=-1,
            vision_feature_select_strategy=select,
            architectures=[FORMAT.hf_class],
            dtype=language.dtype,
        ),
        processor=LlavaProcessor(
            image_processor(own.image, vision),
            tokenizer,
            patch_size=tower.patch_size,
            vision_feature_select_strategy=select,
            chat_template=chat,
            num_additional_image_tokens=1,  # the class token, which "default" takes off again
        ),
        generation=generation_config(own, pad_token_id=tokenizer.pad_token_id),
        tensors=lambda: _tensors(net, language, text["vocab_size"], text["tie_word_embeddings"]),
        notes=notes_of(net),
    )


def _check_connector(net: TrainedNet, connector: nn.Module) -> None:
    if not isinstance(connector, Linear | Mlp):
        found = type(net.components["connector"]).__name__
        raise ValueError(f"connector: found {found}, expected LinearConnector or MlpConnector to be exported")
    if isinstance(connector, Mlp) and connector.depth != 2:
        raise ValueError(f"connector.depth: found {connector.depth}, expected 2, all that transformers knows")


def _tensors(net: TrainedNet, language: PreTrainedModel, rows: int, tied: bool) -> Tensors:
    like = spare_token(net.processor.tokenizer)
    state = net.state()
    yield from KEYS.to_theirs(language_tensors(state, language, rows, like, tied))
    # transformers builds the norm behind the tower, and never runs it.
    width = state["vision.class_embedding"]
    yield f"{TOWER}post_layernorm.weight", torch.ones_like(width)
    yield f"{TOWER}post_layernorm.bias", torch.zeros_like(width)
    if (bias := state.get("connector.linear.bias")) is not None:
        yield "multi_modal_projector.linear_2.weight", torch.eye(len(bias), dtype=bias.dtype, device=bias.device)
        yield "multi_modal_projector.linear_2.bias", torch.zeros_like(bias)


def read(folder: Path, chat: str | None) -> dict[str, object]:
    """The arguments of LLaVA for the net of a folder.

    Chat template and image policy are those that an export of ours notes, or else the folder's own.

    Raises:
        ValueError: A tower or connector that LLaVA does not have here, or a folder without a chat template where none
            is named.
    """
    config: Any = AutoConfig.from_pretrained(folder)
    tower = config.vision_config
    if (kind := tower.model_type) != "clip_vision_model":
        raise ValueError(f"{folder}, vision_config.model_type: found {kind!r}, expected 'clip_vision_model'")
    if (act := config.projector_hidden_act) not in ("gelu", "linear"):
        raise ValueError(f"{folder}, projector_hidden_act: found {act!r}, expected gelu or linear")
    if not isinstance(layer := config.vision_feature_layer, int):
        raise ValueError(f"{folder}, vision_feature_layer: found {layer}, expected one layer")
    facts = FolderFacts.read(folder, tower.image_size)
    return {
        "vision": OpenClipTower(
            weights=None,
            layer=layer,
            cls="keep" if config.vision_feature_select_strategy == "full" else "drop",
            config=open_clip_config(tower, facts.mean, facts.std),
        ),
        "connector": LinearConnector() if act == "linear" else MlpConnector(),
        "language": language_spec(folder, config),
        "chat": chat or facts.notes.get("chat") or folder_chat(folder),
        "special_in_turns": facts.notes.get("special_in_turns", False),
        **facts.settings(max_length=2048),
    }


FORMAT = Format(
    architecture="lightning_mllm.architectures.llava.LLaVA",
    keys=KEYS,
    hf_class="LlavaForConditionalGeneration",
    write=write,
    read=read,
)

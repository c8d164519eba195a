"""Folders of transformers' BLIP-2 for retrieval (`Blip2ForImageTextRetrieval`): the first stage."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from transformers import Blip2Config, Blip2Processor, GenerationConfig

from lightning_mllm.connectors.alignment import AlignmentConnector
from lightning_mllm.connectors.norm import LayerNormConnector
from lightning_mllm.contracts import Turn
from lightning_mllm.interop.folder import FolderFacts, notes_of
from lightning_mllm.interop.format import Format, HfFolder, Tensors, TrainedNet
from lightning_mllm.interop.hf_blip import ASKED, ImageEncoder, Wrap
from lightning_mllm.interop.hf_components import eva_settings, eva_tower, qformer_settings, qformer_spec
from lightning_mllm.interop.keys.blip2 import FIRST_STAGE_HF_KEYS


def write(net: TrainedNet) -> HfFolder:
    """The net as a folder; temperature and head of captions beside it. Of `ln_vision.eps`, see `question_folder`.

    Raises:
        ValueError: A tower that transformers' BLIP-2 cannot hold, or several views an image.
    """
    own: Any = net.net
    processor, encoder = net.processor, ImageEncoder.of(net)
    pieces = processor.chat.render((Turn(role="assistant", text=ASKED),))
    before, _, after = "".join(piece.text for piece in pieces).partition(ASKED)
    before = "".join(processor.tokenizer.convert_ids_to_tokens(processor.prefix)) + before
    tokenizer = Wrap(before=before, after=after).tokenizer(processor, "right")
    vision = eva_settings(encoder.vision, processor.image.size)

    def named(beside: bool) -> Tensors:
        for name, tensor in net.state().items():
            if beside == any(fnmatchcase(name, pattern) for pattern in FORMAT.lacks):
                yield name, tensor

    return HfFolder(
        config=Blip2Config(
            vision_config=vision,
            qformer_config={**qformer_settings(encoder.qformer), "use_qformer_text_input": True},
            num_query_tokens=encoder.qformer.queries.shape[1],
            image_text_hidden_size=own.heads.vision_proj.out_features,
            architectures=[FORMAT.hf_class],
            dtype=torch.float32,
        ),
        processor=Blip2Processor(encoder.images(processor), tokenizer),
        generation=GenerationConfig(),
        tensors=lambda: FIRST_STAGE_HF_KEYS.to_theirs(named(False)),
        beside=lambda: named(True),
        compared="pairs",
        notes={
            **notes_of(net),
            "ln_vision_eps": encoder.ln_vision.eps,
            "rerank": own.rerank,
            "retrieval_length": own.retrieval_length,
        },
        caveat=encoder.caveat(vision["layer_norm_eps"]),
    )


def read(folder: Path, chat: str | None) -> dict[str, object]:
    """The arguments of `Blip2Representation` for the net of a folder.

    Raises:
        ValueError: A tower or a Q-Former that is not known here, or a template is named.
    """
    if chat is not None:
        raise ValueError(f"chat: found {chat!r}, expected none: captions have no template to choose")
    config: Any = Blip2Config.from_pretrained(folder)
    facts = FolderFacts.read(folder, config.vision_config.image_size)
    return {
        "vision": eva_tower(config.vision_config, facts.mean, facts.std),
        "qformer": qformer_spec(config.qformer_config, config.num_query_tokens, "full"),
        "tokenizer": str(folder),
        "ln_vision": LayerNormConnector(eps=facts.notes.get("ln_vision_eps", config.vision_config.layer_norm_eps)),
        "heads": AlignmentConnector(width=config.image_text_hidden_size, eps=config.qformer_config.layer_norm_eps),
        "retrieval_length": facts.notes.get("retrieval_length"),
        "rerank": facts.notes.get("rerank", 0),
        **facts.settings(max_length=32),
    }


FORMAT = Format(
    architecture="lightning_mllm.architectures.blip2_representation.Blip2Representation",
    keys=FIRST_STAGE_HF_KEYS,
    hf_class="Blip2ForImageTextRetrieval",
    write=write,
    read=read,
    lacks=tuple(f"heads.{name}" for name in ("temperature", "transform.*", "norm.*", "bias")),
)

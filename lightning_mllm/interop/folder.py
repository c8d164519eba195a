"""What every folder of transformers has beside its configuration: image settings, notes of ours, padded embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaImageProcessor,
    PreTrainedModel,
)

from lightning_mllm.interop.format import NOTES, Settings, Tensors, TrainedNet
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.processor import Processor
from lightning_mllm.weights.plain_files import read_object

ROWS = 64
"""Embeddings are padded to a multiple of this, as in the published LLaVA folders (32000 -> 32064)."""

Statistic = tuple[float, float, float]
Fit = Literal["crop", "pad", "squash"]


# ---- what every net has: notes, images, generation ---------------------------------------------------------------


def notes_of(net: TrainedNet) -> Settings:
    """What every folder notes."""
    own = net.processor
    return {
        "chat": own.chat.name,
        "image": asdict(own.image),
        "max_length": own.max_length,
        "special_in_turns": own.special_in_turns,
        "decoding": dict(net.decoding),
    }


@dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """What a folder, of transformers or of ours, says beside its configuration."""

    notes: dict[str, Any]
    """Empty for folders of others."""
    mean: Statistic
    std: Statistic
    image: ImagePolicy

    @classmethod
    def read(cls, folder: Path, image_size: int, default: Settings | None = None) -> FolderFacts:
        """Of a folder.

        Args:
            folder: Of transformers.
            image_size: Side of the tower's square.
            default: Image settings for folders that have none.

        Raises:
            ValueError: It has no image settings, and there is no default.
        """
        file = folder / NOTES
        notes: dict[str, Any] = read_object(file, "notes of an export") if file.is_file() else {}
        images = image_settings(folder, default)
        mean, std = (_statistic(images[name]) for name in ("image_mean", "image_std"))
        policy = notes.get("image") or {"size": image_size, "fit": image_fit(images), "mean": mean}
        image = ImagePolicy(**{**policy, "mean": _statistic(policy["mean"])})
        return cls(notes=notes, mean=mean, std=std, image=image)

    def settings(self, max_length: int) -> Settings:
        """The arguments that every architecture takes; `max_length` is what a folder of others has."""
        return {
            "image": self.image,
            "max_length": self.notes.get("max_length", max_length),
            "decoding": self.notes.get("decoding", {}),
        }


def _statistic(values: list[float]) -> Statistic:
    red, green, blue = values
    return red, green, blue


def image_processor(image: ImagePolicy, vision: nn.Module) -> CLIPImageProcessor | LlavaImageProcessor:
    """The image processor of transformers that fits an image into a tower's square and normalises it as the tower."""
    mean, std = (vision.get_buffer(name).flatten().tolist() for name in ("mean", "std"))
    shared: dict[str, Any] = {
        "crop_size": {"height": image.size, "width": image.size},
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": True,
    }
    if image.fit == "pad":
        # Off by default, though LLaVA-1.5 was trained with it (transformers#33175).
        return LlavaImageProcessor(size={"shortest_edge": image.size}, do_pad=True, **shared)
    if image.fit == "crop":
        return CLIPImageProcessor(size={"shortest_edge": image.size}, **shared)
    return CLIPImageProcessor(size={"height": image.size, "width": image.size}, do_center_crop=False, **shared)


def image_settings(folder: Path, default: Settings | None = None) -> dict[str, Any]:
    """The image settings of a folder (`preprocessor_config.json`, or inside `processor_config.json`).

    Raises:
        ValueError: There are none, and no default.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found: Any = read_object(folder / name, "image settings")
            found = found.get("image_processor", found)
            if isinstance(found, dict) and "image_mean" in found:
                return found
    if default is None:
        raise ValueError(f"{folder}: found no image settings, expected preprocessor_config.json")
    return dict(default)


def image_fit(settings: Mapping[str, Any]) -> Fit:
    """How image settings fit an image into a square; the inverse of `image_processor`."""
    if settings.get("do_pad"):
        return "pad"
    # BLIP's processors know nothing of crops: their size is that of a square, CLIP's that of the shortest edge.
    square = isinstance(settings.get("size"), Mapping) and "height" in settings["size"]
    return "crop" if settings.get("do_center_crop", not square) else "squash"


def generation_config(processor: Processor, **more: object) -> GenerationConfig:
    """How transformers generates an answer: it ends where it was learned to end.

    Args:
        processor: Of the net.
        more: Other fields.
    """
    # With such a text transformers asks for the tokenizer: `generate(..., tokenizer=processor.tokenizer)`.
    texts = {"stop_strings": processor.stop_rule.strings} if processor.stop_rule.strings else {}
    begin = processor.tokenizer.bos_token_id
    return GenerationConfig(bos_token_id=begin, eos_token_id=processor.stop_rule.tokens, **texts, **more)


# ---- the language model's tensors --------------------------------------------------------------------------------


def pad_rows(tensor: Float[Tensor, "W D"], rows: int, like: int) -> Float[Tensor, "R D"]:
    """An embedding or a head with copies of row `like` added up to `rows`.

    A copy in the head gets exactly the logit of `like`, and the lower index wins the tie: greedy answers never hold an
    added token, as they might if its row were zero.
    """
    return torch.cat([tensor, tensor[like].expand(rows - len(tensor), -1)])


def language_tensors(
    state: Mapping[str, Tensor], language: PreTrainedModel, rows: int, like: int, tied: bool = True
) -> Tensors:
    """The tensors of a net as files hold them: tied ones once, embedding and head of the language model padded.

    Args:
        state: Of the whole net; the language model's names begin with `language.`.
        language: The language model.
        rows: Of embedding and head.
        like: As for `pad_rows`.
        tied: Whether one of the two is enough where they are tied.
    """
    heads: list[Any] = [language.get_input_embeddings(), language.get_output_embeddings()]
    tables = {each.weight.data_ptr() for each in heads}
    seen: set[int] = set()
    for name, tensor in state.items():
        if name.startswith("language."):
            if tied and tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
        yield name, pad_rows(tensor, rows, like) if tensor.data_ptr() in tables else tensor


def padded_rows(rows: int, tokens: int) -> int:
    """How many rows hold `tokens` ids where there are `rows`: no more if they suffice."""
    return rows if tokens <= rows else -(-tokens // ROWS) * ROWS

"""Folders as transformers reads them: what an architecture gives for one, and what is shared in writing them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AddedToken,
    CLIPImageProcessor,
    GenerationConfig,
    LlavaImageProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from lightning_mllm.contracts import IMAGE_MARK, Batch
from lightning_mllm.weights.files import BESIDE, write_tensors, write_text
from lightning_mllm.weights.hf_tokenizer import padded_left, writes_around

NOTES = "lightning_mllm.json"
"""What transformers has no place for: read when the folder comes back, ignored by everybody else."""

PLACES = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
"""What configurations remember of where they come from."""

PAD_TOKEN = "<pad>"
ROWS = 64
"""Embeddings are padded to a multiple of this, as in the published LLaVA folders (32000 -> 32064)."""


@dataclass(frozen=True, kw_only=True)
class HfFolder:
    """A net as a folder of transformers; an architecture's `hf()` gives it, `export` writes and checks it."""

    config: PreTrainedConfig
    processor: ProcessorMixin
    generation: GenerationConfig
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Names on disk and whole tensors, one at a time."""
    logits: Callable[[Batch], Float[Tensor, "B ..."]]
    """What our net says to a batch: the export must say the same."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    compared: Literal["answers", "pairs"] = "answers"
    """answers: `logits` at every token (of an encoder-decoder: of its decoder), and what is written greedily; pairs:
    f[B, 3], of an image and a text the similarity, and the logits of being apart and of belonging together."""
    asks: bool = True
    """Whether the question is part of what is read: captions are written without one."""
    beside: Callable[[], Iterator[tuple[str, Tensor]]] | None = None
    """Tensors of ours that the class has no place for, under our names."""
    caveat: str = ""
    """What may explain a difference that the check finds."""
    advice: str = ""
    """What users of the folder must do themselves, since transformers does it wrong."""
    code: tuple[Path, ...] = ()
    """Files of `weights/remote` that travel along, where transformers has no class for the net."""

    def write(self, folder: Path) -> None:
        """Writes every file of the folder.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.code:
            shutil.copyfile(file, folder / file.name)
        self.config.save_pretrained(folder)
        self.generation.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        # Engines other than transformers 5 look for the image settings in a file of their own.
        image: Any = getattr(self.processor, "image_processor", None)
        if image is not None:
            image.save_pretrained(folder)
        write_text(folder / NOTES, json.dumps(self.notes, indent=2) + "\n")
        write_tensors(folder / "model.safetensors", self.tensors())
        if self.beside is not None:
            write_tensors(folder / BESIDE, self.beside())
        for file in folder.rglob("*config.json"):
            _forget_places(file)


def _forget_places(file: Path) -> None:
    """Takes out of a configuration where, on the machine that writes it, its parts were read from."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: kept(each) for name, each in value.items() if name not in PLACES}
        return [kept(each) for each in value] if isinstance(value, list) else value

    found = json.loads(file.read_text(encoding="utf-8"))
    if kept(found) != found:
        write_text(file, json.dumps(kept(found), indent=2) + "\n")


def notes(folder: Path) -> dict[str, Any]:
    """What an export of ours wrote beside the files of transformers; empty for folders of others."""
    file = folder / NOTES
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def image_processor(
    size: int, fit: Literal["crop", "pad", "squash"], mean: tuple[float, ...], std: tuple[float, ...]
) -> CLIPImageProcessor | LlavaImageProcessor:
    """The image processor of transformers for one way of fitting an image into a square."""
    shared: dict[str, Any] = {
        "crop_size": {"height": size, "width": size},
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
    }
    if fit == "pad":
        # Off by default, though LLaVA-1.5 was trained with it (transformers#33175).
        return LlavaImageProcessor(size={"shortest_edge": size}, do_pad=True, **shared)
    if fit == "crop":
        return CLIPImageProcessor(size={"shortest_edge": size}, **shared)
    return CLIPImageProcessor(size={"height": size, "width": size}, do_center_crop=False, **shared)


def image_settings(folder: Path) -> dict[str, Any]:
    """The image settings of a folder (`preprocessor_config.json`, or inside `processor_config.json`).

    Raises:
        ValueError: There are none.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            found = found.get("image_processor", found)
            if "image_mean" in found:
                return found
    raise ValueError(f"{folder}: found no image settings, expected preprocessor_config.json")


def image_fit(settings: Mapping[str, Any]) -> Literal["crop", "pad", "squash"]:
    """How image settings fit an image into a square; the inverse of `image_processor`."""
    if settings.get("do_pad"):
        return "pad"
    # BLIP's processors know nothing of crops: their size is that of a square, CLIP's that of the shortest edge.
    square = isinstance(settings.get("size"), Mapping) and "height" in settings["size"]
    return "crop" if settings.get("do_center_crop", not square) else "squash"


def multimodal_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    chat_template: str | None = None,
    *,
    max_length: int | None = None,
    begins: bool = True,
) -> PreTrainedTokenizerFast:
    """A copy with this template, or without any, and with the image and padding tokens that processors need.

    Rows of a batch are padded on the left: answers are written behind them.

    Args:
        tokenizer: Of the language model.
        chat_template: Jinja.
        max_length: Tokens that a row may have.
        begins: Whether it puts its begin token before a text; not where the template writes one, so that there is one.
    """
    copied = padded_left(tokenizer, max_length)
    if IMAGE_MARK not in copied.get_vocab():
        copied.add_tokens([_special(IMAGE_MARK)], special_tokens=True)
    if copied.pad_token is None:
        copied.add_special_tokens({"pad_token": _special(PAD_TOKEN)})
    copied.chat_template = chat_template  # pyright: ignore[reportAttributeAccessIssue]
    return copied if begins else writes_around(copied)


def generation_config(processor: Any, **more: Any) -> GenerationConfig:
    """How transformers writes an answer: it ends where it was learned to end.

    Args:
        processor: A processor, with `eos_token_ids`, `stop_strings` and `tokenizer`.
        more: Other fields.
    """
    # With such a text transformers asks for the tokenizer: `generate(..., tokenizer=processor.tokenizer)`.
    texts = {"stop_strings": processor.stop_strings} if processor.stop_strings else {}
    return GenerationConfig(
        bos_token_id=processor.tokenizer.bos_token_id, eos_token_id=processor.eos_token_ids, **texts, **more
    )


def pad_rows(tensor: Float[Tensor, "W D"], rows: int, like: int) -> Float[Tensor, "R D"]:
    """An embedding or a head with copies of row `like` added up to `rows`.

    A copy in the head gets exactly the logit of `like`, and the lower index wins the tie: greedy answers never hold an
    added token, as they might if its row were zero.
    """
    return torch.cat([tensor, tensor[like].expand(rows - len(tensor), -1)])


def language_tensors(
    state: Mapping[str, Tensor], language: Any, rows: int, like: int, tied: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a net as files hold them: tied ones once, embedding and head of the language model padded.

    Args:
        state: Of the whole net; the language model's names begin with `language.`.
        language: The language model.
        rows: Of embedding and head.
        like: As for `pad_rows`.
        tied: Whether one of the two is enough where they are tied.
    """
    tables = {each.weight.data_ptr() for each in (language.get_input_embeddings(), language.get_output_embeddings())}
    seen: set[int] = set()
    for name, tensor in state.items():
        if name.startswith("language."):
            if tied and tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
        yield name, pad_rows(tensor, rows, like) if tensor.data_ptr() in tables else tensor


def spare_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token of which added rows are copies: one that no answer holds."""
    candidates: list[Any] = [tokenizer.unk_token_id, tokenizer.bos_token_id, 0]
    return next(token for token in candidates if token is not None)


def padded_rows(rows: int, tokens: int) -> int:
    """How many rows hold `tokens` ids where there are `rows`: no more if they suffice."""
    return rows if tokens <= rows else -(-tokens // ROWS) * ROWS


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)

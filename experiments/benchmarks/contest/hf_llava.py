"""LLaVA of transformers, `LlavaForConditionalGeneration`, and the samples of a workload as its processor gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from contest.workload import IGNORE, PAD, PATCH, STATISTICS, Workload

MEAN, STD = (torch.tensor(each).view(3, 1, 1) for each in STATISTICS)


class Rows(Dataset[dict[str, Tensor]]):
    """The samples of a workload, as `LlavaProcessor` gives them; or more of them, for so many steps."""

    def __init__(self, workload: Workload, steps: int | None = None) -> None:
        self.workload, self.steps = workload, steps or workload.all_steps + 1

    def __len__(self) -> int:
        return self.workload.batch * self.steps

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if number >= len(self):  # the sampler by length iterates over it
            raise IndexError(number)
        one = self.workload.sample(number)
        return {"input_ids": one.tokens, "labels": one.labels, "pixel_values": (one.images.float() / 255 - MEAN) / STD}


def collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Padded to the longest row."""
    tokens = pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=PAD)
    return {
        "input_ids": tokens,
        "attention_mask": (tokens != PAD).long(),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORE),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
    }


def config_of(workload: Workload) -> LlavaConfig:
    """The last block but one of the tower is used, as in LLaVA's published folders."""
    sizes = workload.sizes
    tower = {"hidden_size": sizes.tower_width, "intermediate_size": 4 * sizes.tower_width, "patch_size": PATCH}
    tower |= {"image_size": sizes.image_size, "num_hidden_layers": sizes.tower_layers}
    text = {"hidden_size": sizes.width, "intermediate_size": sizes.inner, "num_hidden_layers": sizes.layers}
    heads = sizes.width // sizes.head
    text |= {"num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": sizes.vocabulary}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(num_attention_heads=sizes.tower_width // sizes.tower_head, **tower),
        text_config=LlamaConfig(max_position_embeddings=4096, pad_token_id=PAD, **text),
        image_token_index=workload.image_token,
        image_seq_length=sizes.slots,
        vision_feature_layer=-2,
    )


def model_of(workload: Workload, folder: Path) -> torch.nn.Module:
    """The net that all contenders begin with, frozen as the stage says; random ones are in bfloat16."""
    if workload.random:
        with torch.device(workload.device):
            model = LlavaForConditionalGeneration._from_config(config_of(workload), dtype=torch.bfloat16)
    else:
        model = LlavaForConditionalGeneration.from_pretrained(folder.parent / "hf")
    for name, parameter in model.named_parameters():
        trained = "multi_modal_projector" in name or (workload.stage == "instruct" and "vision_tower" not in name)
        parameter.requires_grad_(trained)
    if workload.stage == "instruct_lora":
        targets = r".*language_model.*(q|k|v|o|gate|up|down)_proj"
        add_adapter = LoraConfig(r=128, lora_alpha=256, target_modules=targets)
        model = get_peft_model(model, add_adapter)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or "multi_modal_projector" in name)
    return model

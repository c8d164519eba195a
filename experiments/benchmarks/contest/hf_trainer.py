"""The loop of transformers: `LlavaForConditionalGeneration` under `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

from contest.gate import Gate
from contest.workload import IGNORE, PAD, STATISTICS, Workload

MEAN, STD = (torch.tensor(each).view(3, 1, 1) for each in STATISTICS)


class Rows(Dataset[dict[str, Tensor]]):
    """The samples of a workload, as `LlavaProcessor` gives them."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def __len__(self) -> int:
        return self.workload.batch * (self.workload.all_steps + 1)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if number >= len(self):  # the sampler by length iterates over it
            raise IndexError(number)
        one = self.workload.sample(number)
        return {"input_ids": one.tokens, "labels": one.labels, "pixel_values": (one.image.float() / 255 - MEAN) / STD}


def collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Padded to the longest row."""
    tokens = pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=PAD)
    return {
        "input_ids": tokens,
        "attention_mask": (tokens != PAD).long(),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORE),
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
    }


def model_of(workload: Workload, folder: Path) -> LlavaForConditionalGeneration:
    """The net that all contenders begin with, frozen as the stage says."""
    model = LlavaForConditionalGeneration.from_pretrained(folder.parent / "hf")
    for name, parameter in model.named_parameters():
        trained = "multi_modal_projector" in name or (workload.stage == "instruct" and "vision_tower" not in name)
        parameter.requires_grad_(trained)
    return model


def gated(trainer: type[Trainer], gate: Gate, **given: Any) -> Trainer:
    """A trainer of this class that passes the gate before each step."""

    class Gated(trainer):
        last: Tensor | None = None

        def training_step(self, *arguments: Any, **named: Any) -> Tensor:
            self.last = super().training_step(*arguments, **named)
            return self.last

    class AtGate(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            gate.passed(None if made.last is None else float(made.last))

    made = Gated(**given, callbacks=[AtGate()])
    return made


def run(workload: Workload, settings: Mapping[str, Any], folder: Path, gate: Gate) -> None:
    """Trains.

    Args:
        settings: Of `TrainingArguments`, in place of its defaults.
    """
    given = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=workload.batch,
        max_steps=workload.all_steps + 1,
        learning_rate=workload.lr,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        **{"train_sampling_strategy": "sequential", **settings},
    )
    model, rows = model_of(workload, folder), Rows(workload)
    gated(Trainer, gate, model=model, args=given, train_dataset=rows, data_collator=collate).train()

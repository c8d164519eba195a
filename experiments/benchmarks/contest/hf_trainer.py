"""The loop of transformers: `LlavaForConditionalGeneration` under `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module
from transformers import Trainer, TrainerCallback, TrainingArguments

from contest.gate import Gate
from contest.hf_llava import Rows, collate, model_of
from contest.workload import Workload


def gated(trainer: type[Trainer], gate: Gate, **given: Any) -> Trainer:
    """A trainer of this class that passes the gate before each step."""

    class Gated(trainer):
        last: tuple[Tensor, Tensor] | None = None

        def training_step(self, model: Module, inputs: dict[str, Tensor], *arguments: Any, **named: Any) -> Tensor:
            tokens = inputs["attention_mask"].sum()
            self.last = super().training_step(model, inputs, *arguments, **named), tokens
            return self.last[0]

    class AtGate(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            loss, tokens = made.last or (None, None)
            gate.passed(None if loss is None else float(loss), None if tokens is None else int(tokens))

    made = Gated(**given, callbacks=[AtGate()])
    return made


def arguments(workload: Workload, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Of `TrainingArguments`, or of what inherits from it."""
    return {
        "output_dir": str(folder),
        "use_cpu": workload.device == "cpu",
        "per_device_train_batch_size": workload.batch,
        "max_steps": workload.all_steps + 1,
        "learning_rate": workload.lr,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
        **settings,
    }


def run(workload: Workload, settings: Mapping[str, Any], folder: Path, gate: Gate) -> None:
    """Trains.

    Args:
        settings: Of `TrainingArguments`, in place of its defaults.
    """
    given = TrainingArguments(**arguments(workload, settings, folder))
    model, rows = model_of(workload, folder), Rows(workload)
    gated(Trainer, gate, model=model, args=given, train_dataset=rows, data_collator=collate).train()

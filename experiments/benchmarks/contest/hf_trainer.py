"""The loop of transformers: `LlavaForConditionalGeneration` under `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


MEGA_BATCH = 50
"""Steps whose samples `LengthGroupedSampler` sorts, where there are four times as many."""


def at_even_distances(order: Sequence[int], workload: Workload) -> list[int]:
    """Of samples in falling length, those of as many steps as are taken.

    So few steps would all be long ones. Those that are counted lie at even distances in a mega-batch.
    """
    counted = [MEGA_BATCH * (2 * step + 1) // (2 * workload.steps) for step in range(workload.steps)]
    steps = [*([MEGA_BATCH // 2] * workload.warmup), *counted, MEGA_BATCH // 2]
    return [sample for step in steps for sample in order[step * workload.batch : (step + 1) * workload.batch]]


class Grouping(Trainer):
    """One whose samples are grouped by length as its sampler does it."""

    workload: Workload

    def _get_train_sampler(self, *arguments: Any, **named: Any) -> Any:
        sampler = super()._get_train_sampler(*arguments, **named)
        return at_even_distances(list(sampler or ()), self.workload)


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
    grouped = given.train_sampling_strategy == "group_by_length"
    rows = Rows(workload, 4 * MEGA_BATCH if grouped else None)
    what = {"model": model_of(workload, folder), "train_dataset": rows, "data_collator": collate}
    trainer = gated(Grouping if grouped else Trainer, gate, args=given, **what)
    if isinstance(trainer, Grouping):
        trainer.workload = workload
    trainer.train()

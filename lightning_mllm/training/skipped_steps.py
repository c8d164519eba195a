"""Optimizer steps whose loss or gradient is no number: they change no weight, are counted, and their samples listed.

    skipped_steps.jsonl   {"step": 5, "loss": "nan", "gradient_norm": "nan", "in_a_row": 1, "samples": [
                           {"id": "7", "source": "photos", "index": 41, "where": "a.json: record 42", "finite": false},
                           ...]}

A skipped step counts as a step: the schedule and the data go on, and no average takes the same weights twice. Loss and
gradient norm are those of the global batch, which all ranks know, so that all skip alike and none asks another.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer
from torch import Tensor

from lightning_mllm.collectives import AgreedError, gather_objects
from lightning_mllm.contracts import Batch, Output
from lightning_mllm.training.callbacks.ending import tell
from lightning_mllm.weights.files import write_text

FILE = "skipped_steps.jsonl"
"""In the folder of the run."""


@dataclass(frozen=True, kw_only=True)
class SkipLimits:
    """How many optimizer steps may be skipped because their loss or gradient is NaN or infinite.

    Raises:
        ValueError: A share out of range, or a number below 1.
    """

    in_a_row: int = 10
    """So many that follow one another end the training."""
    share: float = 0.01
    """More than this share of the stage's steps end it too; as long as they are fewer than `in_a_row`, they do not."""

    def __post_init__(self) -> None:
        if self.in_a_row < 1:
            raise ValueError(f"skipped_steps.in_a_row: found {self.in_a_row}, expected at least 1")
        if not 0 <= self.share <= 1:
            raise ValueError(f"skipped_steps.share: found {self.share}, expected a share from 0 to 1")

    def most(self, steps: int) -> int:
        """How many of a stage's steps may be skipped."""
        return max(self.in_a_row - 1, math.floor(self.share * steps))


class SkippedSteps:
    """Judges each optimizer step before it is taken.

    Args:
        limits: How many may be skipped.
    """

    def __init__(self, limits: SkipLimits = SkipLimits()) -> None:
        self.limits = limits
        self.total, self.in_a_row = 0, 0
        """Of the stage so far, over all restarts; and those just before."""
        self._seen: list[tuple[list[str], list[Tensor]]] = []

    def begin(self, trainer: Trainer) -> None:
        """Training begins or goes on: the file keeps the steps before."""
        self._seen = []
        path = Path(trainer.default_root_dir, FILE)
        if trainer.is_global_zero and not trainer.fast_dev_run and path.exists():  # pyright: ignore
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step(line) <= trainer.global_step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def saw(self, batch: Batch, output: Output) -> None:
        """A micro-batch of the step, and its loss; nothing is asked of the device."""
        self._seen.append((batch.ids, [term.losses.detach() for term in output.terms.values() if term.weight]))

    def skips(self, trainer: Trainer, loss: float, norm: float, steps: int) -> bool:
        """Whether the step is not to be taken; the next one is judged after it.

        Args:
            loss: Of the global batch.
            norm: Of its gradient.
            steps: Of the whole stage.

        Raises:
            AgreedError: Too many are skipped.
        """
        seen, self._seen = self._seen, []
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return False
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        step = trainer.global_step + 1
        samples = [each for rank in gather_objects(_samples(trainer, seen)) for each in rank]
        found = f"a loss of {loss:.4g} and a gradient norm of {norm:.4g}"
        path = Path(trainer.default_root_dir, FILE)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # pyright: ignore
            line = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "in_a_row": self.in_a_row}
            _append(path, json.dumps({**line, "samples": samples}))
        why = ""
        if self.in_a_row >= self.limits.in_a_row:
            why = f"which {self.in_a_row} steps in a row had, expected fewer (skipped_steps.in_a_row)"
        elif self.total > self.limits.most(steps):
            why = (
                f"which {self.total} of {steps} steps had, expected at most {self.limits.most(steps)}"
                f" (skipped_steps.share: {self.limits.share:g})"
            )
        if why:
            raise AgreedError(
                f"optimizer step {step}: found {found}, {why}; the samples are listed in {path}: repair them, lower"
                " stage.lr or raise the limit"
            )
        tell(
            trainer,
            f"{trainer.default_root_dir}: optimizer step {step} was skipped, it had {found} ({self.total} skipped so"
            f" far; samples in {FILE})",
            error=True,
        )
        return True

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.total, self.in_a_row = state.get("total", 0), state.get("in_a_row", 0)


def _samples(trainer: Trainer, seen: Sequence[tuple[list[str], list[Tensor]]]) -> list[dict[str, Any]]:
    """Those of this rank in the step that ends: what is known of each, and whether its own loss is a number."""
    found = list[dict[str, Any]]()
    first = trainer.fit_loop.epoch_loop.batch_idx + 1 - len(seen)
    for number, (ids, terms) in enumerate(seen, first):
        finite = [all(rows) for rows in zip(*(losses.isfinite().tolist() for losses in terms), strict=True)]
        known = named_samples(trainer, number) or [{} for _ in ids]
        for id, facts, is_number in zip(ids, known, finite, strict=True):
            found.append({"id": id, **facts, "finite": is_number})
    return found


def named_samples(trainer: Trainer, number: int) -> list[dict[str, Any]]:
    """Source, index, file and record of each sample of this rank's micro-batch `number`, if its loader knows them."""
    loader: Any = trainer.train_dataloader
    return loader.named(number) if hasattr(loader, "named") else []


def _step(line: str) -> float:
    """Of a line; that of a line that was cut is after all others."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())

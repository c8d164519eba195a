"""The loop of TRL: LLaVA of transformers under `SFTTrainer`, which tokenizes and normalises in its collator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
from trl import SFTConfig, SFTTrainer

from contest.gate import Gate
from contest.hf_llava import model_of
from contest.hf_processor import processor_of, rows_of
from contest.hf_trainer import arguments, gated
from contest.workload import Workload


def run(workload: Workload, settings: Mapping[str, Any], folder: Path, gate: Gate) -> None:
    """Trains.

    Args:
        settings: Of `SFTConfig`, in place of its defaults.
    """
    # Nothing is told to anybody.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    # As its documentation advises for images, whose vectors are not to be cut.
    given = SFTConfig(**arguments(workload, {"max_length": None, **settings}, folder))
    what = {"model": model_of(workload, folder), "train_dataset": rows_of(workload)}
    gated(SFTTrainer, gate, args=given, processing_class=processor_of(workload), **what).train()

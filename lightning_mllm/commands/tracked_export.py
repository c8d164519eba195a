"""An exported folder as an artifact of W&B, made out of the weights of a stage."""

from __future__ import annotations

from pathlib import Path

from lightning_mllm.commands.loggers import experiment_of, weights_tracker
from lightning_mllm.export.record import Origin
from lightning_mllm.training.callbacks.tracking import artifact_name, log_weights


def track_export(origin: Origin, to: Path) -> None:
    """Where the stage kept its weights as artifacts (`log_weights`), a run of its group makes the folder out of them.

    Args:
        origin: The run that was exported.
        to: The folder.
    """
    if origin.stage is None:
        return
    tracker = weights_tracker(origin.settings.get("trainer", {}).get("logger"))
    if tracker is not None:
        runs = origin.settings["runs"]
        tracker.set_stage(origin.stage / "export", "export", experiment_of(origin.stage, runs))
        log_weights(tracker, str(origin.stage.resolve()), Path(runs), used=True)
        tracker.log_files(to, f"{artifact_name(origin.stage)}-export", "export", {"folder": to.name}, used=False)
        tracker.finalize("success")

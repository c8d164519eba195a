"""What a finished stage leaves behind: its weights, and the facts about how they came to be."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.training.callbacks.averaging import KEY, Averaging, averaged
from lightning_mllm.training.callbacks.best import best
from lightning_mllm.training.callbacks.checkpoint import how_to_go_on
from lightning_mllm.training.callbacks.ending import Ending, ending_of, tell
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.checkpoints import Values
from lightning_mllm.training.initialise import summary
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.sharding import GatheredTensors
from lightning_mllm.weights.files import reading_order
from lightning_mllm.weights.finite import refuse_non_finite
from lightning_mllm.weights.stage_weights import write_stage


class StageRecord(Callback):
    """Writes `weights/` into the run folder at the end of training; until then the stage counts as unfinished.

    A training that a callback ended, such as EarlyStopping, is at its end too; `stage.json` says which. One whose time
    was up (`trainer.max_time`) is not, and a `fast_dev_run` leaves nothing.

    Where a callback averages the weights, `weights/` is the average; where one keeps the best (`BestWeights`), it is
    those, and `stage.json` says of which step and score.

    Args:
        settings: What identifies the stage (the resolved configuration), kept as a hash in `stage.json`; None keeps the
            stage's own settings.
    """

    def __init__(self, settings: Values | None = None) -> None:
        self.settings = settings
        self._seconds = 0.0
        self._since = 0.0
        self._max_steps: int | None = None
        """`trainer.max_steps` while it is hidden."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
        self._since = time.perf_counter()
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.truncate(trainer.global_step)
        if step := trainer.global_step:
            total = trainer.estimated_stepping_batches
            tell(trainer, f"{trainer.default_root_dir}: {step} of {total} steps are done, step {step + 1} is next")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Clocks of ranks differ, and what follows is done by all of them or by none.
        ended = trainer.strategy.broadcast(ending_of(trainer))
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        told = f"{trainer.default_root_dir}: {ended} ended the training after step {step} of {total}"
        if not ended.is_complete:
            more = "nothing is kept" if ended.reason == "fast_dev_run" else how_to_go_on(trainer)
            tell(trainer, f"{told}; the stage is not done, {more}")
            return
        if ended.reason != "steps":
            tell(trainer, f"{told}; the stage is done")
        module = cast(MultimodalModule, pl_module)
        with averaged(trainer, module) as average:
            self._write(trainer, module, average, ended)
        trainer.strategy.barrier("StageRecord")

    def _write(self, trainer: Trainer, module: MultimodalModule, average: Values | None, ended: Ending) -> None:
        assert module.stage is not None
        chosen = best(trainer)
        gathered = GatheredTensors(module.checkpoint_tensors())
        if trainer.is_global_zero:
            tensors = gathered if chosen is None else chosen.weights(trainer)
            facts = {
                "best": None if chosen is None else chosen.facts(),
                "freeze_table": [asdict(row) for row in module.freeze_rows()],
                "provenance": summary(module.provenance),
                "seconds": self.seconds(),
                "average": average,
                "ended_by": str(ended),
                "skipped_steps": module.skipped.total,
            }
            write_stage(
                Path(trainer.default_root_dir),
                tensors,
                stage=module.stage.name,
                settings={"config": self.settings or asdict(module.stage), **facts},
                init_from=module.stage.init_from,
                steps=trainer.global_step,
                runs=Path(module.runs),
                lora_scale=None if module.lora is None else module.lora.alpha / module.lora.r,
            )
        elif chosen is None:
            # What rank 0 refuses to write is refused by all.
            for name in reading_order(gathered.layout()):
                for piece in gathered.pieces(name):
                    refuse_non_finite(name, piece)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Values) -> None:
        if KEY in checkpoint and not any(isinstance(each, Averaging) for each in trainer.callbacks):  # pyright: ignore
            raise ValueError(
                "trainer.callbacks: found no average, expected the one that the checkpoint was written with;"
                " another run folder starts the stage anew"
            )
        if trainer.state.fn == TrainerFn.FITTING and 0 <= trainer.max_steps <= checkpoint["global_step"]:
            # Lightning would leave at once, and the weights would never be written.
            self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, -1

    def seconds(self) -> float:
        """Wall time of training so far, over all restarts."""
        return self._seconds + (time.perf_counter() - self._since if self._since else 0.0)

    def state_dict(self) -> Values:
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: Values) -> None:
        self._seconds = state_dict["seconds"]

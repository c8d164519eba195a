"""One stage as one run of Weights & Biases, which is never a reason for the stage to stop.

RUN/<stage>/wandb/tracked.json              the id of the run, kept for a stage that goes on and for its test
RUN/<stage>/wandb/[offline-]run-<time>-ID/  what W&B keeps; one folder each time the stage is begun or goes on
RUN/<stage>/wandb/data/                     pictures of tables, until they are uploaded

The group is the experiment, the job type the verb that began the run. W&B's step is the optimizer step. A row of a step
that the run already has (a stage goes on at its checkpoint, which is older) is left out, and rows up to the checkpoint
that were lost with a killed process are taken from `metrics.csv`: a run that was stopped has the steps of one that was
not.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_mllm.training.loggers.wandb_account import account, trouble
from lightning_mllm.training.loggers.wandb_contents import log_files, table
from lightning_mllm.training.loggers.wandb_file import history
from lightning_mllm.weights.files import write_text

T = TypeVar("T")

FOLDER, ID = "wandb", "tracked.json"
PRIVATE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_meta": True,
}
"""What W&B would collect by itself: what is printed, sources, the git remote, the command line, who runs it where."""


class WandbTracker(Logger):
    """A run of W&B; online where the server answers, else offline in the run folder, for `wandb sync`.

    Args:
        project: As in W&B; None is WANDB_PROJECT or "lightning-mllm".
        entity: As in W&B; None is WANDB_ENTITY or the key's own.
        group: None is WANDB_RUN_GROUP or the experiment, such as "quickstart/llava".
        name: None is WANDB_NAME or the experiment and the stage.
        tags, notes: As in W&B.
        mode: None is what WANDB_MODE says; else online where there is a key, offline where there is none.
        log_weights: Whether the stage's weights become an artifact, with those that it starts from as its inputs, and
            its exports artifacts of runs whose input it is.
        log_checkpoints: Whether the checkpoint that training ends with becomes an artifact.
        timeout: Seconds that the server has to answer, and again to begin a run, before the run is tracked offline.
        upload_timeout: Seconds to wait at the end for what is not uploaded yet; the rest stays for `wandb sync`.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        log_weights: bool = False,
        log_checkpoints: bool = False,
        timeout: float = 8.0,
        upload_timeout: float = 20.0,
    ) -> None:
        super().__init__()
        if timeout <= 0 or upload_timeout <= 0:
            raise ValueError(
                f"trainer.logger: found timeouts of {timeout} and {upload_timeout} s, expected more than 0"
            )
        self.project, self.entity, self.group, self.run_name = project, entity, group, name
        self.tags, self.notes, self.mode = tuple(tags), notes, mode
        self.log_weights, self.log_checkpoints = log_weights, log_checkpoints
        self.timeout, self.upload_timeout = timeout, upload_timeout
        self.run_dir, self.verb, self.defaults = Path(), "fit", ("", "")
        self._run: Any = None
        self._is_over = False
        """Whether W&B failed, or the run was ended."""
        self._failed = ""
        """Why a run that was online goes on offline."""
        self._recorded: tuple[int, set[str]] = (-1, set())
        self._environment: dict[str, str | None] = {}

    def set_stage(self, run_dir: Path, verb: str, experiment: str) -> None:
        """Says which stage this is, before anything is logged.

        Args:
            run_dir: Its run folder.
            verb: What is done with it: fit, validate, test or predict.
            experiment: The group, unless one was given.
        """
        self.run_dir, self.verb, self.defaults = run_dir.resolve(), verb, (experiment, f"{experiment}/{run_dir.name}")

    # ---- a Logger of Lightning -----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.project or os.environ.get("WANDB_PROJECT") or "lightning-mllm"

    @property
    def version(self) -> str:
        return str(self._known().get("id", ""))

    @property
    def experiment(self) -> Any:
        """The run of W&B, begun at the first call; None on other ranks, and where W&B failed."""
        if rank_zero_only.rank != 0 or self._is_over:
            return None
        if self._run is None:
            self._run = self._guarded(self._begin)
        return self._run

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        given = params if isinstance(params, Mapping) else vars(params)
        self._with(lambda run: run.config.update(dict(given), allow_val_change=True))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        self._with(lambda run: self._log(run, row, step))

    def save(self) -> None:
        """Nothing: W&B writes by itself."""

    def finalize(self, status: str) -> None:
        run, self._run, self._is_over = self._run, None, True
        if run is not None:
            self._guarded(lambda: self._finish(run, failed=status != "success"))
        self._reset_environment()

    # ---- more than a Logger --------------------------------------------------------------------------------------

    def go_on(self, step: int, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Logs what a killed process had not written of the steps up to the checkpoint's.

        Args:
            step: That of the checkpoint.
            rows: Step -> values, as in `metrics.csv`.
        """
        if self.experiment is not None:
            for each in sorted(rows):
                if self._recorded[0] < each <= step:
                    self.log_metrics(rows[each], each)

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int | None = None
    ) -> None:
        """A table, whose cells may be pictures; of a step, or of the run as a whole.

        What the pictures show is also kept as captioned images, `KEY_pictures`, which need no table to be looked at.
        """
        self._with(lambda run: self._log(run, table(key, columns, rows), step))

    def log_summary(self, values: Mapping[str, float]) -> None:
        """What is true of the whole run, such as test scores."""
        self._with(lambda run: run.summary.update(dict(values)))

    def log_files(self, folder: Path, name: str, kind: str, facts: Mapping[str, object], used: bool) -> None:
        """Files as an artifact that this run made, or that it used; they stay where they are until they are uploaded.

        Args:
            folder: Holds the files.
            name: Of the artifact.
            kind: Its type.
            facts: Its metadata.
            used: Whether the run used it. W&B knows by its content which run made it.
        """
        self._with(lambda run: log_files(run, folder, name, kind, facts, used))

    def _log(self, run: Any, row: Mapping[str, Any], step: int | None) -> None:
        if step is None or self.verb != "fit":
            run.summary.update(dict(row))
            return
        last, keys = self._recorded
        if step <= last:
            row = {name: value for name, value in row.items() if step == last and name not in keys}
        if row:
            run.log(dict(row), step=step)

    # ---- the run -------------------------------------------------------------------------------------------------

    def _with(self, act: Callable[[Any], object]) -> None:
        if (run := self.experiment) is None:
            return
        try:
            act(run)
        except Exception as error:
            if self._failed or run.offline:
                self._give_up(error)
                return
            # Its process, or its server, is gone: what comes now is kept in a second file of the same run.
            self._failed, self._run = f"failed ({_reason(error)})", None
            _stop_service()
            if (run := self.experiment) is not None:
                self._guarded(lambda: act(run))

    def _guarded(self, act: Callable[[], T]) -> T | None:
        """Whatever W&B raises is told, and ends the tracking, not the stage."""
        try:
            return act()
        except Exception as error:
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        self._is_over = True
        self._tell(f"failed ({_reason(error)}); {self.run_dir} is not tracked any longer")

    def _tell(self, sentence: str) -> None:
        print(f"W&B: {sentence}", flush=True)

    def _known(self) -> dict[str, Any]:
        file = self.run_dir / FOLDER / ID
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _begin(self) -> Any:
        folder = self.run_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._set_environment(folder)
        known = self._known()
        # `wandb agent` says which run of the sweep this is.
        id = os.environ.get("WANDB_RUN_ID") or known.get("id") or uuid.uuid4().hex[:12]
        facts = {"id": id, "job_type": known.get("job_type", self.verb) if known.get("id") == id else self.verb}
        write_text(folder / ID, json.dumps(facts) + "\n")
        own = account()
        mode = self.mode or ("offline" if own.mode == "offline" else "online")
        reason = self._failed or (trouble(own, self.timeout) if mode == "online" else "")
        run = None
        if mode == "online" and not reason:
            try:
                run = self._init(facts, "online")
            except Exception as error:
                reason = f"{own.host} began no run ({type(error).__name__})"
                _stop_service()
        run = run or self._init(facts, "offline")
        if run.offline:
            told = f"{reason}, tracked" if reason else "tracked"
            self._tell(f"{told} offline; wandb sync {_short(run.settings.sync_dir)} uploads it later")
            earlier = history(folder, id)
            last = max(earlier, default=-1)
            self._recorded = (last, set(earlier.get(last, ())))
        else:
            self._tell(f"tracked at {run.url}")
            self._recorded = (run.starting_step - 1, set())
        return run

    def _init(self, facts: Mapping[str, str], mode: str) -> Any:
        import wandb

        group, name = self.defaults
        return wandb.init(
            project=self.name,
            entity=self.entity,
            group=self.group or os.environ.get("WANDB_RUN_GROUP") or group,
            name=self.run_name or os.environ.get("WANDB_NAME") or name,
            tags=self.tags or None,
            notes=self.notes,
            dir=self.run_dir,
            id=facts["id"],
            job_type=facts["job_type"],
            resume="allow",
            mode=mode,  # pyright: ignore[reportArgumentType]
            # Stages of one process are runs of their own.
            reinit="create_new",
            settings=wandb.Settings(
                **PRIVATE,
                silent=True,
                login_timeout=self.timeout,
                init_timeout=self.timeout,
                finish_timeout=self.upload_timeout,
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=1.0,
            ),
        )

    def _finish(self, run: Any, failed: bool) -> None:
        try:
            run.finish(exit_code=int(failed))
        except TimeoutError:
            folder = _short(run.settings.sync_dir)
            self._tell(f"not all was uploaded in {self.upload_timeout:.0f} s; wandb sync {folder} uploads the rest")
        finally:
            _stop_service()

    def _set_environment(self, folder: Path) -> None:
        """Media and logs belong to the run folder; W&B reads where they go from the environment alone."""
        own = {
            "WANDB_DATA_DIR": str(folder / "data"),
            "WANDB_CACHE_DIR": str(folder / "cache"),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_SILENT": "true",
        }
        self._environment = {name: os.environ.get(name) for name in own}
        os.environ.update(own)

    def _reset_environment(self) -> None:
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment = {}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _short(path: str) -> str:
    """Relative to the working directory, where it is below that."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _stop_service() -> None:
    """Ends W&B's own process, which knows the folders of one stage, and still waits for a server that failed."""
    import wandb

    with suppress(Exception):
        wandb.teardown(exit_code=1)

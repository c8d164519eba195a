"""The LightningModule that every architecture is: components built from specs, one stage's freezing, one exact loss.

It wraps a plain net (`nets/`), which knows nothing of training; an architecture adds its components, its `stages` and
its processor. Nothing here knows which architecture it is. Names of tensors are the net's everywhere: in patterns,
checkpoints and stage weights.

Contract: the gradient of an optimizer step is that of one weighted sum over the rows of the global batch, however the
batch is cut into ranks and micro-batches. `stage.reduction` gives the weights (training/reduction.py), from the tokens
of all rows, before the first backward:

    training_step          A * W * sum of weight * loss of each row      Lightning divides by A
    backward               DDP and FSDP2                                 average over W ranks
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from lightning_mllm.collectives import all_reduce, rank_and_world
from lightning_mllm.component import ComponentSpec
from lightning_mllm.contracts import Batch, Output, Stage
from lightning_mllm.interop.format import key_maps
from lightning_mllm.language.generation import AnswerEnd, Decoding
from lightning_mllm.language.lora import adapted_layers, add_lora
from lightning_mllm.language.supervised_rows import select_supervised_rows
from lightning_mllm.nets.base import Net, VisionLanguageNet
from lightning_mllm.nets.encoded_images import EncodedImages
from lightning_mllm.training import step_row
from lightning_mllm.training.checkpoints import restore
from lightning_mllm.training.evaluated import EvaluatedModule
from lightning_mllm.training.freezing import (
    FreezeRow,
    GradientCheck,
    freeze,
    freeze_table,
    frozen_modules,
    print_freeze_table,
    what_trains,
)
from lightning_mllm.training.host_memory import keep_freed_blocks
from lightning_mllm.training.initialise import Provenance, build_empty, initialise, materialise
from lightning_mllm.training.muon import MuonAdamW, hidden_matrices
from lightning_mllm.training.optimizer import parameter_groups
from lightning_mllm.training.parallelize import (
    Checkpointing,
    ParallelPlan,
    gathered,
    parallelize,
    reshard,
)
from lightning_mllm.training.precision import check_precision
from lightning_mllm.training.reduction import MicroBatchWeights, step_weights
from lightning_mllm.training.resuming import check_stage, note_stage
from lightning_mllm.training.sharding import ShardedStrategy, full_tensor, to_local
from lightning_mllm.training.skipped_steps import SkippedSteps
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.training.step_sums import StepSums
from lightning_mllm.training.steps import optimizer_steps, take_whole_steps
from lightning_mllm.weights.stage_weights import initial_tensors


class MultimodalModule(EvaluatedModule):
    """A multimodal net in one of its training stages.

    Args:
        net: Makes the net of its built components, which it takes by name.
        components: Attribute name in the net -> spec that builds it.
        processor: Turns samples into batches and tokens into text.
        stage: The stage to train; None builds the net for use only.
        decoding: Task, or TASK_PART for a part of the test data alone (`exact_sphinx_ocrvqa`) -> how its answers are
            generated; a task that is absent takes the defaults.
        runs: The folder that names in `stage.init_from` are relative to.

    Raises:
        ValueError: The stage's name is not one of `stages`, or it gives adapters to a stage that trains none.
    """

    net: Net
    """There after `configure_model`."""

    stages: ClassVar[dict[str, Stage]] = {}
    packs: ClassVar[bool] = True
    """Whether samples may share a row (`hardware.pack`): not where those of a micro-batch are compared."""
    keys_to_ignore_on_load: ClassVar[tuple[str, ...]] = ()
    """Glob patterns of tensors that `stage.init_from` may have and the net has not."""

    def __init__(
        self,
        *,
        net: Callable[..., Net],
        components: Mapping[str, ComponentSpec],
        processor: Any,
        stage: StageSettings | None = None,
        decoding: dict[str, Decoding] | None = None,
        runs: str = "runs",
    ) -> None:
        super().__init__()
        self.components = dict(components)
        self._make_net = net
        self.processor = processor
        self.stage = stage
        self.decoding = dict(decoding or {})
        self.runs = runs
        self.parallel = ParallelPlan()
        self.checkpointing: dict[str, Checkpointing] = {}
        self.table, self.lora = ({}, None) if stage is None else what_trains(stage, self.stages)
        self.trained: dict[str, str] = {}
        self.provenance: Provenance = {}
        self.drift: tuple[str, ...] = ()
        """Names of settings that may differ from those of the checkpoint (`--allow-drift`)."""
        self.left_out: list[FreezeRow] = []
        """Frozen parts that are not built, for their outputs are known (`training/cached_features.py`)."""
        self.strict_loading = (
            False  # checkpoints hold what is trained; `on_load_checkpoint` checks that it is all there
        )
        self._title = type(self).__name__  # FSDP2 changes the class
        self._configured = False
        self._sums = StepSums()
        self._weights: list[MicroBatchWeights] = []
        self._row: dict[str, float] = {}
        self.skipped = SkippedSteps()
        self._saw_image = False
        self._check: GradientCheck | None = None

    # ---- the net -----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Output:
        return self.net(batch)

    def losses(self, batch: Batch) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        return self.net.losses(batch)

    def generate(self, batch: Batch, decoding: Decoding) -> list[list[int]]:
        """The new tokens of each row, without the end token."""
        return self.net.generate(batch, decoding, self.answer_end, *self._images)

    @property
    def answer_end(self) -> AnswerEnd:
        """What ends an answer, by the processor."""
        rule = self.processor.stop_rule
        return AnswerEnd(tokens=tuple(rule.tokens), pad=self.processor.pad_id, text=rule.text)

    def likelihoods(self, batch: Batch) -> list[list[float]]:
        most = torch.tensor(max(map(len, batch.candidates)), device=batch.tokens.device)
        # Where parameters are sharded, every rank must pass as often as any.
        passes = int(all_reduce(most, "max") if self.sharded else most)
        # A row that has fewer candidates repeats its last one, and drops it.
        texts = [[each[min(i, len(each) - 1)] for each in batch.candidates] for i in range(passes)]
        answered = [self.processor.with_answers(batch, each) for each in texts]
        rows = self.net.log_likelihoods(batch, answered, *self._images).T.tolist()
        return [row[: len(candidates)] for row, candidates in zip(rows, batch.candidates, strict=True)]

    @property
    def _images(self) -> tuple[EncodedImages, ...]:
        """What was encoded before of the sets that are answered, for nets that show images to a language model."""
        images = self.encoded_images if isinstance(self.net, VisionLanguageNet) else None
        return () if images is None else (images,)

    def answers(self, batch: Batch, part: str = "") -> list[str]:
        """What the net says to each row of a batch of prompts (left-padded): the likeliest candidate, or a new text.

        Args:
            part: Of the test data, as in `Evaluation`; it may have decoding settings of its own.
        """
        if any(batch.candidates):
            rows = zip(batch.candidates, self.likelihoods(batch), strict=True)
            return [candidates[row.index(max(row))] for candidates, row in rows]
        task = batch.tasks[0] if batch.tasks else ""
        decoding = self.decoding.get(f"{task}_{part}") or self.decoding.get(task, Decoding())
        with gathered(self, self.parallel):
            return [self.processor.decode(tokens) for tokens in self.generate(batch, decoding)]

    @property
    def sharded(self) -> bool:
        """Whether parameters are spread over ranks, so that every rank must take part in every forward pass."""
        return self._trainer is not None and isinstance(self._trainer.strategy, ModelParallelStrategy)

    def configure_model(self) -> None:
        """Builds the components without memory, freezes, shards, allocates on the device and fills.

        Without a Trainer the net is built whole on the CPU. A second call does nothing.
        """
        if self._configured:
            return
        self.build(cast(ShardedStrategy, self.trainer.strategy).mesh if self.sharded else None)
        materialise(self.net, torch.device("cpu") if self._trainer is None else self._trainer.strategy.root_device)
        init_from = {} if self.stage is None else self.stage.init_from
        tables = key_maps(type(self), self.components) if init_from else {}
        earlier = initial_tensors(init_from, Path(self.runs), tables, check=rank_and_world()[0] == 0)
        found = initialise(self.net, self.components, earlier, self.keys_to_ignore_on_load)
        self.provenance = {**self.provenance, **found}
        self._configured = True
        self.train()

    def build(self, mesh: DeviceMesh | None) -> None:
        """Builds the net on the meta device, freezes it, and lays it out by the plan (`parallelize`)."""
        built = {name: build_empty(spec) for name, spec in self.components.items()}
        if self.lora is not None:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                for name, layers in adapted_layers(built, self.lora.targets).items():
                    add_lora(built[name], self.lora, layers)
        for language in (each for each in built.values() if self.stage and isinstance(each, PreTrainedModel)):
            select_supervised_rows(language)
        self.net = self._make_net(**built)
        self.trained = freeze(self.net, self.table)
        blocks = {name: spec.blocks(built[name]) for name, spec in self.components.items()}
        self.checkpointing = {
            name: self.parallel.checkpointing(name, found, mesh is not None) for name, found in blocks.items() if found
        }
        parallelize(self.net, blocks, self.parallel, mesh, self.net.entries)

    def train(self, mode: bool = True) -> MultimodalModule:
        super().train(mode)
        for module in frozen_modules(self) if mode else ():
            module.eval()
        return self

    def freeze_rows(self) -> list[FreezeRow]:
        """What is trained, as a table."""
        lr, decay = (0.0, 0.0) if self.stage is None else (self.stage.lr, self.stage.weight_decay)
        return [*self.left_out, *freeze_table(self.net, self.trained, self.table, lr=lr, weight_decay=decay)]

    # ---- training ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        check_precision(str(self.trainer.precision), self.sharded, self.parallel)
        if (clip := self.trainer.gradient_clip_val) is not None:
            raise ValueError(f"trainer.gradient_clip_val: found {clip}, expected it to be set as stage.gradient_clip")
        if stage == "fit":
            if self.stage is not None:
                self.stage.check_optimizer(self.sharded)
            if getattr(getattr(self.trainer, "datamodule", None), "packing", None) and (why := self._unpacked):
                raise ValueError(f"hardware.pack: found true, expected false for {self._title}, {why}")
            take_whole_steps(self.trainer)
        super().setup(stage)

    @property
    def _unpacked(self) -> str:
        """Why samples cannot share a row; empty where they can."""
        if not self.packs:
            return "which compares the samples of a micro-batch"
        return "whose language model is an encoder-decoder" if getattr(self.processor, "seq2seq", False) else ""

    def on_fit_start(self) -> None:
        assert self.stage is not None, "training needs a stage"
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_blocks()
        # Frozen parts are in eval mode on purpose.
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
        rows = self.freeze_rows()
        if self.trainer.is_global_zero:
            print_freeze_table(rows, title=f"{self._title}, stage {self.stage.name}")
        for logger in self.loggers:
            logger.log_hyperparams({"freeze_table": [asdict(row) for row in rows]})

    def on_train_start(self) -> None:
        self.train()
        self._sums, self._weights = StepSums(), []
        self.skipped.begin(self.trainer)
        # A validation before training leaves the outermost unit gathered; gradients belong to the shards.
        reshard(self.net)
        self._check = GradientCheck(self.net, self.net.unused_parameters())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            # Lightning would do it between the forward and the backward pass, where memory is scarcest.
            self.trainer.optimizers[0].zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:  # pyright: ignore
        """Nothing: see `on_train_batch_start`."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        weights = self._weights_of(batch)
        output: Output = self(batch)
        values = weights.values(output)
        self.skipped.saw(batch, output)
        sources = step_row.sources_of(getattr(self.trainer, "datamodule", None))
        self._sums.add(batch, output, weights, values, sources)
        # What Lightning and the strategy divide by.
        return values["loss"] * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def _weights_of(self, batch: Batch) -> MicroBatchWeights:
        """What the rows of this micro-batch count for in the step."""
        assert self.stage is not None
        accumulate = self.trainer.accumulate_grad_batches
        if batch.step or not self._weights:
            batches = batch.step or (batch,)
            if len(batches) != accumulate:
                raise ValueError(
                    f"data: found a loader that shows {len(batches)} micro-batches of an optimizer step ahead"
                    f" (Batch.step), expected the {accumulate} that it takes; data_modules.loader.StepsAhead shows"
                    " those of any loader"
                )
            self._weights = step_weights(batches, self.stage.reduction, self.stage.together, batch.tokens.device)
        return self._weights.pop(0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self._check is not None
        totals, self._sums = self._sums.totals(), StepSums()
        for each in step_row.throughputs(self.trainer):
            each.count({"tokens": totals.read, "supervised_tokens": totals.tokens, "images": totals.images})
        totals.check(self._title, self.trainer.global_step + 1)
        self._row = {**totals.losses, **totals.sources, **step_row.rates(optimizer)}
        self._saw_image = totals.images > 0
        step_row.show_loss(self.trainer, self._row["train/loss"])

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        assert self.stage is not None and gradient_clip_val is None and self._check is not None, "refused in setup"
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [cast(Tensor, p.grad) for p in parameters]
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        found, clip = norm.item(), self.stage.gradient_clip
        if self.skipped.skips(self.trainer, self._row["train/loss"], found, self.optimizer_steps()):
            # Without gradients the optimizer changes neither weights nor moments.
            for parameter in parameters:
                parameter.grad = None
        else:
            if not self._check.done:
                self._check.look(saw_image=self._saw_image, moves=self._row["train/lr"] > 0)
            if clip > 0 and found + 1e-6 > 0.99 * clip:  # the ratio of a smaller norm is 1
                ratio = (clip / (norm + 1e-6)).clamp(max=1.0)
                torch._foreach_mul_([to_local(g) for g in gradients], ratio)
        step = self.trainer.global_step + 1
        if step % self.trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            # Lightning writes its own log after a checkpoint is saved: a stop in between would lose the row.
            row = {**self._row, "train/gradient_norm": found, "train/skipped": float(self.skipped.total)}
            step_row.log_row(self.trainer, row, step, norm.device)

    def configure_optimizers(self) -> Any:
        assert self.stage is not None
        stage = self.stage
        decay = {"weight_decay": stage.weight_decay, "decay_scalars": stage.decay_scalars}
        matrices = hidden_matrices(self.net) if stage.optimizer == "muon" else None
        groups = parameter_groups(self.net, self.trained, self.table, lr=stage.lr, matrices=matrices, **decay)
        if not groups:
            raise ValueError(f"stage.train: stage {stage.name!r} trains nothing, expected at least one pattern")
        fused = all(p.device.type in ("cpu", "cuda") for group in groups for _, p in group["params"])
        make = torch.optim.AdamW if matrices is None else MuonAdamW
        optimizer = make(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps, fused=fused)
        total = self.optimizer_steps()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: stage.lr_factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_steps(self) -> int:
        """How many optimizer steps the stage takes."""
        return optimizer_steps(self.trainer, None if self.stage is None else self.stage.steps)

    # ---- what is kept ------------------------------------------------------------------------------------------

    def state_dict(self, *arguments: Any, **named: object) -> dict[str, Tensor]:
        """The net's."""
        return self.net.state_dict(*arguments, **named)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Into the net."""
        return self.net.load_state_dict(state_dict, strict, assign)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint and the stage's weights hold, sharing memory with the net: trained parameters, and buffers
        of modules that train; DTensors where parameters are sharded.

        Contract: goes through `state_dict`, which brings FSDP2's parameters back into shards.
        """
        still = {id(buffer) for module in frozen_modules(self.net) for buffer in module.buffers()}
        moving = {name for name, buffer in self.net.named_buffers() if id(buffer) not in still}
        return {n: t.detach() for n, t in self.state_dict().items() if n in self.trained or n in moving}

    def trained_tensors(self) -> dict[str, Tensor]:
        """The same as full tensors on the CPU, on rank 0; every rank must call this, the others get nothing."""
        kept = {name: full_tensor(tensor) for name, tensor in self.checkpoint_tensors().items()}
        first = self._trainer is None or self._trainer.is_global_zero
        return {name: tensor.cpu() for name, tensor in kept.items()} if first else {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.checkpoint_tensors()
        checkpoint["skipped"] = self.skipped.state_dict()
        note_stage(checkpoint, self.trainer, self.stage)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_stage(checkpoint, self)
        self.skipped.load_state_dict(checkpoint.get("skipped", {}))
        restore(checkpoint, self.checkpoint_tensors(), with_optimizer=self.trainer.state.fn == TrainerFn.FITTING)


# Lightning asks for it in each step.
MultimodalModule.training_step.__signature__ = inspect.signature(MultimodalModule.training_step)  # pyright: ignore

"""This project's loop: Lightning's Trainer as `mllm fit` sets it up, without checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from contest.gate import Gate
from contest.workload import PATCH, Workload
from data_modules.loader import Collate, ResumableLoader, Share
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.connectors.projector import MlpConnector
from lightning_mllm.contracts import Encoded, TokenKind
from lightning_mllm.language.causal import CausalLM
from lightning_mllm.language.lora import Lora
from lightning_mllm.training.cached_features import VISION, flat, seen
from lightning_mllm.training.callbacks.metrics_csv import MetricsCsv
from lightning_mllm.training.callbacks.throughput import Throughput
from lightning_mllm.training.initialise import materialise
from lightning_mllm.training.parallelize import ParallelPlan
from lightning_mllm.training.sharding import ShardedStrategy, copy_into_shard, to_local
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.cached import CachedTower
from lightning_mllm.vision.tower import OpenClipTower

BESIDE = ("pack", "sharded", "cache")
"""Settings that are not of `ParallelPlan`."""


class RandomLLaVA(LLaVA):
    """One whose parameters are drawn where they are: weights of 7B are not written for a benchmark."""

    def configure_model(self) -> None:
        if self._configured:
            return
        strategy = self.trainer.strategy
        self.build(strategy.mesh if isinstance(strategy, ShardedStrategy) else None)
        materialise(self.net, strategy.root_device)
        with torch.no_grad():
            for parameter in self.net.parameters():
                own = to_local(parameter)
                own.normal_(std=0.02) if parameter.ndim > 1 else own.fill_(1.0)
        self._configured = True
        self.train()


def llava(workload: Workload) -> LLaVA:
    """The net of a workload, not built yet; in its stage the optimizer and schedule of HF Trainer's defaults."""
    sizes = workload.sizes
    vision = {"image_size": sizes.image_size, "patch_size": PATCH, "width": sizes.tower_width}
    config: dict[str, Any] = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {**vision, "layers": sizes.tower_layers, "head_width": sizes.tower_head},
        "text_cfg": {"context_length": 16, "vocab_size": 259, "width": 16, "heads": 2, "layers": 1},
    }
    language = {
        "model_type": "llama",
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.width // sizes.head,
        "num_key_value_heads": sizes.width // sizes.head,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    stage = StageSettings(
        name=workload.stage,
        steps=workload.all_steps + 1,
        global_batch=workload.batch,
        lr=workload.lr,
        warmup=0,
        decay="linear",
        gradient_clip=1.0,
        lora=Lora(dropout=0.0) if workload.stage == "instruct_lora" else None,
    )
    return (RandomLLaVA if workload.random else LLaVA)(
        vision=OpenClipTower(weights=None, config=config),
        connector=MlpConnector(),
        language=CausalLM(config=language),
        stage=stage,
    )


def cached(module: LLaVA, workload: Workload, weights: Path) -> list[Tensor]:
    """Takes the tower out of a net that is not built; f[1, F] of each image, as `mllm cache` keeps it."""
    spec = module.components[VISION]
    tower, bf16 = spec.build(), module.parallel.precision == "bf16"
    own = load_file(weights)
    tower.load_state_dict({name: own[f"{VISION}.{name}"] for name, _ in tower.named_parameters()}, strict=False)
    dtype = torch.bfloat16 if bf16 else torch.float32
    tower.to(dtype).eval()
    sizes = workload.sizes
    groups = ((sizes.slots, sizes.tower_width),)
    module.components[VISION] = CachedTower(groups=groups, mixed=False, dtype=dtype)
    count = -(-workload.batch * (workload.all_steps + 1) // workload.per_image) * workload.images
    return [flat(seen(tower, workload.image(number)[None]), dtype) for number in range(count)]


class Rows(Dataset[Encoded]):
    """The samples of a workload, as a processor encodes them.

    Args:
        features: Of images, in place of their pixels.
    """

    def __init__(self, workload: Workload, features: Sequence[Tensor] = ()) -> None:
        self.workload, self.features = workload, features

    def __getitem__(self, number: int) -> Encoded:
        one, slots = self.workload.sample(number), self.workload.sizes.slots
        kinds = torch.full_like(one.tokens, TokenKind.TEXT, dtype=torch.uint8)
        kinds[1 : 1 + slots * len(one.images)] = int(TokenKind.IMAGE)
        return Encoded(
            id=str(number),
            tokens=one.tokens,
            labels=one.labels,
            kinds=kinds,
            images=torch.cat([self.features[each] for each in one.image_ids]) if self.features else one.images,
            image_ids=one.image_ids,
            visual_counts=(slots,) * len(one.images),
        )


class InOrder:
    """The order of the samples: one behind the other."""

    def at(self, position: int) -> int:
        return position

    def __len__(self) -> int:
        return 1 << 30


class Samples(LightningDataModule):
    """The samples of a workload, one global batch a step."""

    def __init__(self, workload: Workload, rows: Rows, collate: Collate) -> None:
        super().__init__()
        self.workload, self.rows, self.collate = workload, rows, collate
        self.optimizer_steps = workload.all_steps + 1

    def train_dataloader(self) -> ResumableLoader:
        batch, ranks = self.workload.batch, self.workload.ranks
        return ResumableLoader(
            self.rows,
            [(Share("batch", batch, batch // ranks), InOrder())],
            rank=int(os.environ.get("RANK", "0")),
            world=ranks,
            collate_fn=self.collate,
            steps=self.optimizer_steps,
        )


class AtGate(Callback):
    """Loads the weights that all contenders begin with, and passes the gate before each step."""

    def __init__(self, gate: Gate, weights: Path) -> None:
        self.gate, self.weights = gate, weights

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.weights.is_file():
            weights = load_file(self.weights)
            for name, parameter in cast(LLaVA, pl_module).net.named_parameters():
                copy_into_shard(parameter, weights[name])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.gate.passed(float(trainer.callback_metrics["train/loss"]) if batch_idx else None)


def run(workload: Workload, settings: Mapping[str, Any], folder: Path, gate: Gate) -> None:
    """Trains.

    Args:
        settings: Of `ParallelPlan`; `pack`, as in `hardware`; `sharded`, whether by `ShardedStrategy`;
            `cache`, whether the tower's features are known.
    """
    module = llava(workload)
    module.parallel = ParallelPlan(**{name: value for name, value in settings.items() if name not in BESIDE})
    weights = folder.parent / "ours.safetensors"
    collate = Collate(module.processor, "right", packed=settings.get("pack", False))
    rows = Rows(workload, cached(module, workload, weights) if settings.get("cache") else ())
    trainer = Trainer(
        accelerator="cpu" if workload.device == "cpu" else "gpu",
        devices=workload.ranks,
        strategy=ShardedStrategy() if settings.get("sharded") else "ddp" if workload.ranks > 1 else "auto",
        max_epochs=1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        logger=MetricsCsv(str(folder / "metrics.csv")),
        callbacks=[Throughput(), AtGate(gate, weights)],
    )
    trainer.fit(module, datamodule=Samples(workload, rows, collate))

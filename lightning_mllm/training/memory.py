"""The memory of one rank in one optimizer step, told without a GPU, without weights and without a second rank.

The step itself is run, on the real net under the real plan: its floating-point tensors are fake (torch's
`FakeTensorMode`: shapes and dtypes without values), its ranks are those of a fake process group, and a dispatch mode
adds up the storages that are alive after each operation.

    build on meta -> parallelize -> fake parameters, moments and gradients -> forward, backward -> peak by category

Integers are real: what decides shapes (masks, segments, routing) is computed, so a forward pass may ask for it.
"""

from __future__ import annotations

import multiprocessing
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._guards import active_fake_mode
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_mllm.contracts import Batch
from lightning_mllm.training.initialise import materialise
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.muon import hidden_matrices
from lightning_mllm.training.parallelize import Checkpointing, before_last_micro_batch, sharding_mesh
from lightning_mllm.training.sharding import to_local

aten = torch.ops.aten
Result = TypeVar("Result")


@dataclass
class Memory:
    """Bytes of one rank."""

    parameters: int = 0
    """Its part of the parameters, and buffers."""
    gradients: int = 0
    """Its part of them, after the ranks have summed them."""
    optimizer: int = 0
    """Both moments of AdamW, or the one of Muon."""
    activations: int = 0
    """What forward passes, first ones and recomputed ones, have made."""
    temporary: int = 0
    """Gathered parameters, gradients that are not summed yet, gradients of activations."""

    @property
    def total(self) -> int:
        return sum(getattr(self, each.name) for each in fields(self))


def step_memory(
    module: MultimodalModule, batch: Batch, *, ranks: int, sharded: bool, accumulates: bool
) -> tuple[Memory, dict[str, Checkpointing]]:
    """The largest moment of an optimizer step, and how the blocks of each component are checkpointed in it.

    Args:
        module: Not built yet; `module.parallel` is the plan.
        batch: A micro-batch of one rank.
        ranks: All of them, of one node.
        sharded: Whether `ShardedStrategy` trains it; else one device holds everything.
        accumulates: Whether a step has several micro-batches.

    Raises:
        ValueError: Several ranks that are not sharded, or a plan that does not fit the ranks.
    """
    if ranks > 1 and not sharded:
        raise ValueError(
            f"trainer.strategy: found none over {ranks} devices, expected ShardedStrategy, or one device, to tell the"
            " memory of"
        )
    return _apart(lambda: _step_memory(module, batch, ranks, sharded, accumulates))


def _step_memory(
    module: MultimodalModule, batch: Batch, ranks: int, sharded: bool, accumulates: bool
) -> tuple[Memory, dict[str, Checkpointing]]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    module.build(sharding_mesh("cpu", ranks, ranks, module.parallel.shard) if sharded else None)
    with FloatsAreFake(), gpu_attention():
        materialise(module, torch.device("cpu"))
        module.train()
        return run_step(module, batch, sharded=sharded, accumulates=accumulates), module.checkpointing


def run_step(module: MultimodalModule, batch: Batch, *, sharded: bool, accumulates: bool) -> Memory:
    """The peak of a forward and a backward pass of a net that has its memory, fake or real; as `step_memory`."""
    tracker = MemoryTracker()
    # Before the first pass: while parameters are gathered, `module.parameters()` gives the gathered ones.
    trained = [each for each in module.parameters() if each.requires_grad]
    muon = module.stage is not None and module.stage.optimizer == "muon"
    matrices = hidden_matrices(module.net) if muon else set[str]()
    of_muon = {id(each) for name, each in module.net.named_parameters() if name in matrices}
    moments = [torch.empty_like(to_local(each)) for each in trained for _ in range(1 if id(each) in of_muon else 2)]
    # Gradients are freed after each step; where every micro-batch reduces them, the second meets those of the first.
    once = sharded and accumulates and module.parallel.reduces_once(module.net)
    gradients = [torch.empty_like(each) for each in trained] if accumulates and not once else []
    for parameter, gradient in zip(trained, gradients, strict=False):
        parameter.grad = gradient
    tracker.label([*module.parameters(), *module.buffers()], "parameters")
    tracker.label(moments, "optimizer")
    tracker.label(gradients, "gradients")
    tracker.label([each for each in vars(batch).values() if isinstance(each, Tensor)], "activations")
    del gradients
    if not sharded:
        for each in trained:
            each.register_post_accumulate_grad_hook(lambda p: tracker.label([p.grad], "gradients"))
    with tracker:
        if once:
            loss = module(batch).loss
            with before_last_micro_batch(module.net, module.parallel):
                loss.backward()
        module(batch).loss.backward()
    return tracker.peak


def _apart(work: Callable[[], Result]) -> Result:
    """In a forked process: what torch sets up for the process group and for fake GPUs ends with it."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def told() -> None:
        # Here and once: the threads of fake GPUs would each renew the pool of threads that a fork leaves behind.
        torch.set_num_threads(1)
        try:
            sender.send(work())
        except Exception as error:
            sender.send(error)

    process = context.Process(target=told)
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = RuntimeError("the process that runs the step on fake tensors ended without an answer")
    process.join()
    if isinstance(found, Exception):
        raise found
    return found


class MemoryTracker(TorchDispatchMode):
    """Adds up the storages that are alive after each operation, by category; on fake tensors and on real ones.

    torch has such trackers: `FSDPMemTracker` takes nothing but FSDP2's modules, `MemTracker` no frozen parameter. The
    first one's totals are the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = Memory(), Memory()
        self._known: dict[int, tuple[weakref.ref[torch.UntypedStorage], int, str]] = {}
        self._total = self._most = 0

    def label(self, tensors: Iterable[Tensor], category: str) -> None:
        """Counts tensors that exist already, or tells of what kind they are."""
        for tensor in tensors:
            self._count(to_local(tensor).untyped_storage(), category, relabel=True)

    def __enter__(self) -> MemoryTracker:
        self._fake, self._resize = active_fake_mode(), torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            # FSDP2 frees gathered parameters so, and no operation tells.
            self._resize(storage, size)
            if storage._cdata in self._known:
                self._count(storage, "")

        torch.UntypedStorage.resize_ = resize_  # pyright: ignore[reportAttributeAccessIssue]
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # its local tensors come by themselves
        found = func(*args, **(kwargs or {}))
        if active_fake_mode() is not self._fake:
            return found  # DTensor tries out shapes
        backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        library, name = func._schema.name.split("::")
        shared = library in ("fsdp", "c10d", "_c10d_functional")
        category = "temporary" if backward or shared else "activations"
        for tensor in tree_leaves((args, kwargs, found) if shared else found):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), category, relabel=shared and self._is_new(tensor))
        if name.startswith("_reduce_scatter") or name.startswith("reduce_scatter"):
            self.label([args[0]], "gradients")
        if self._total > self._most:
            self._most, self.peak = self._total, Memory(**vars(self.now))
        return found

    def _is_new(self, tensor: Tensor) -> bool:
        return self._known.get(tensor.untyped_storage()._cdata, (None, 0, "activations"))[2] == "activations"

    def _count(self, storage: torch.UntypedStorage, category: str, relabel: bool = False) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known[0]() is storage:
            self._add(known[2], -known[1])
            reference, category = known[0], category if relabel else known[2]
        else:
            reference = weakref.ref(storage, lambda _: self._forget(key))
        self._known[key] = reference, size, category
        self._add(category, size)

    def _forget(self, key: int) -> None:
        _, size, category = self._known.pop(key)
        self._add(category, -size)

    def _add(self, category: str, size: int) -> None:
        setattr(self.now, category, getattr(self.now, category) + size)
        self._total += size


class FloatsAreFake(FakeTensorMode):
    """Floating-point tensors are fake, those of integers and booleans real, so that what depends on them is known."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if not any(isinstance(each, FakeTensor) for each in tensors):
            dtype = (kwargs or {}).get("dtype")
            fractions = any(each.is_floating_point() for each in tensors)
            if not fractions and not (dtype or torch.long).is_floating_point and (tensors or dtype or _counts(func)):
                return func(*args, **(kwargs or {}))
        elif func is aten.index.Tensor:
            args = (args[0], [each for index in args[1] for each in _places(index)])
        return super().__torch_dispatch__(func, types, args, kwargs or {})


def _counts(func: OpOverload) -> bool:
    """Whether an operation without tensors and without a dtype makes integers."""
    return func._schema.name == "aten::arange"


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A real mask as the indices of what it chooses."""
    real = index is not None and not isinstance(index, FakeTensor) and index.dtype is torch.bool
    return tuple(index.nonzero(as_tuple=True)) if real else (index,)  # pyright: ignore[reportOptionalMemberAccess]


@contextmanager
def gpu_attention() -> Iterator[None]:
    """Attention by the kernels that a GPU has, so that what they keep for the backward pass is counted."""
    with patch.object(F, "scaled_dot_product_attention", _attention):
        yield


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype) if attn_mask.dtype is torch.bool else attn_mask
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    keep = torch.is_grad_enabled()
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale
    )[0]

"""The parallel plan: how a stage uses its ranks, its memory and its precision. In float32 it never changes the loss.

Two precisions: `fp32`, and `bf16`, in which weights are computed with in bfloat16 while what the optimizer updates,
its moments and the reduction of gradients stay in float32 (arXiv 1710.03740, sec. 3.1, calls the float32 copy master
weights). Where parameters are sharded, FSDP2 gathers them in bfloat16 (`MixedPrecisionPolicy`), and blocks compute in
it throughout; where they are not, `compute_copies.py` does it, which keeps the copies until the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from torch._ops import OpOverload
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedConfig

from lightning_mllm.language.attention import SPANS
from lightning_mllm.training.compilation import compiled
from lightning_mllm.training.compute_copies import FAST_BF16, ComputeCopies, has_bf16

Precision = Literal["fp32", "bf16", "auto"]
Checkpointing = Literal["auto", "none", "selective", "full"]
Reduce = Literal["auto", "micro_batch", "step"]

LANGUAGE = "language"
"""The component whose blocks are the language model's."""
SMALL = 10**9
"""Trained parameters up to which "auto" reduces gradients once a step: 4 GB of them on every rank until then."""


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """How a stage is laid out on the hardware: speed and memory, and rounding in bf16.

    Raises:
        ValueError: A setting is out of range.
    """

    precision: Precision = "fp32"
    """bf16: weights are computed with in bfloat16; what is trained is stored in float32, what is frozen in bfloat16.
    With `ShardedStrategy` the copy of a block lasts while it runs (large nets, on one GPU too); without, copies of all
    last until the next pass, and norms and what blocks add up stay in float32. "auto" is for runs on a CPU: bf16 where
    it has AVX512_BF16 or AMX, else fp32."""
    language_checkpointing: Checkpointing = "auto"
    """Activation checkpointing of the language model's blocks. "full" keeps the input of a block and computes the rest
    again in the backward pass (0.78 of a forward pass); "selective" also keeps the outputs of attention and of every
    second matrix product (0.39); "none" keeps everything. "auto" is "none" in fp32 and without sharded parameters; else
    it is "selective" where at least a tenth of the blocks trains, and "full" where gradients only pass through them
    (LoRA included)."""
    vision_checkpointing: Checkpointing = "auto"
    """The same for the blocks of all other components; "auto" is "selective" in bf16 where they train. A frozen tower
    keeps no activations in any case."""
    compile: bool = False
    """Whether each block is compiled by itself (torch.compile); useful where batches have few different shapes."""
    shard: int | None = None
    """Ranks that share one copy of the parameters, a divisor of all ranks; 1 is a copy on each, as in DDP. None: the
    ranks of a node; with several nodes each node holds a copy, and gradients are summed over nodes once a step."""
    gather_frozen: bool = False
    """Whether frozen blocks stay gathered after their first use: no all-gather of them any more, and each rank holds
    all of them in the compute dtype."""
    gather_to_generate: bool = True
    """Whether all blocks stay gathered while answers are generated, instead of an all-gather for every token."""
    prefetch: int = 0
    """Blocks whose all-gather is issued ahead of their use. FSDP2 overlaps one in any case; 1 issues it earlier from
    the CPU, each further one costs the memory of a gathered block."""
    reduce_every: Reduce = "auto"
    """When gradients are reduced over ranks under gradient accumulation: after each micro-batch, or once a step, until
    which each rank holds all gradients whole in float32. "auto": "step" up to 1e9 trained parameters."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("precision", Precision),
            ("language_checkpointing", Checkpointing),
            ("vision_checkpointing", Checkpointing),
            ("reduce_every", Reduce),
        ):
            if (found := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"hardware.{name}: found {found!r}, expected one of {', '.join(get_args(choices))}")
        if self.precision == "auto":
            object.__setattr__(self, "precision", "bf16" if has_bf16("cpu", FAST_BF16) else "fp32")
        if self.shard is not None and self.shard < 1:
            raise ValueError(f"hardware.shard: found {self.shard}, expected at least 1")
        if self.prefetch < 0:
            raise ValueError(f"hardware.prefetch: found {self.prefetch}, expected at least 0")

    @property
    def policy(self) -> MixedPrecisionPolicy:
        """In which dtype FSDP2 gathers, computes and reduces."""
        # torch 2.15 reduces in the parameter's dtype where nothing is stated, earlier releases in the compute dtype.
        bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return bf16 if self.precision == "bf16" else MixedPrecisionPolicy()

    def checkpointing(self, component: str, blocks: Iterable[nn.Module], sharded: bool = True) -> Checkpointing:
        """ "none", "selective" or "full" for the blocks of a component, after freezing."""
        chosen = self.language_checkpointing if component == LANGUAGE else self.vision_checkpointing
        if chosen != "auto":
            return chosen
        parameters = [p for block in blocks for p in block.parameters()]
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        if self.precision == "fp32" or not sharded or (component != LANGUAGE and not trained):
            return "none"
        return "selective" if 10 * trained > sum(p.numel() for p in parameters) else "full"

    def reduces_once(self, net: nn.Module) -> bool:
        """Whether gradients are reduced only after the last micro-batch of a step."""
        if self.reduce_every != "auto":
            return self.reduce_every == "step"
        return sum(p.numel() for p in net.parameters() if p.requires_grad) <= SMALL


def parallelize(
    net: nn.Module,
    blocks: Mapping[str, Sequence[nn.Module]],
    plan: ParallelPlan,
    mesh: DeviceMesh | None = None,
    entries: Iterable[str] = (),
) -> None:
    """Lays out `net` by the plan, in place: after freezing, while its parameters are on the meta device.

    The order is part of the contract. Blocks are listed by the caller before FSDP2 changes their classes. Checkpointing
    wraps `forward`, not the module, so FSDP2's hooks stay outside of it and no parameter is renamed. Compilation wraps
    that (`block.compile()` around a checkpoint compiles nothing, silently).

    Args:
        net: The outermost unit; embeddings, heads and connectors belong to it and stay gathered throughout a pass.
        blocks: Component (an attribute of `net`) -> its transformer blocks, each a unit of its own.
        plan: The settings.
        mesh: Of ranks, (shard,) or (replicate, shard); None shards nothing (one device, DDP).
        entries: Methods of `net` beside `forward` that use parameters.

    Raises:
        ValueError: A parameter that is trained is stored in 16 bits.
    """
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            raise ValueError(f"{name}: found {parameter.dtype} in a parameter that is trained, expected float32")
    half = {name for name in blocks if name != LANGUAGE and _computes_in_float16(net.get_submodule(name))}
    if plan.precision == "bf16" and mesh is not None:
        _store_in_bf16(net, [net.get_submodule(name) for name in half])
    copies = ComputeCopies(net) if plan.precision == "bf16" and mesh is None else None
    for name, found in blocks.items():
        checkpointing = plan.checkpointing(name, found, mesh is not None)
        for block in found:
            if checkpointing != "none":
                if copies is not None and not plan.compile:
                    block.forward = partial(copies.again, block.forward)
                _checkpoint(block, checkpointing, traced=plan.compile)
            if plan.compile:
                block.forward = compiled(block.forward)
    if mesh is None:
        if copies is not None:
            copies.enter(entries)
        return
    for name, found in blocks.items():
        policy = MixedPrecisionPolicy() if name in half else plan.policy
        component = [net.get_submodule(name)] if name in half else []
        for unit in [*found, *component]:
            if any(True for _ in unit.parameters()):
                fully_shard(unit, mesh=mesh, mp_policy=policy)
        _prefetch(net.get_submodule(name), plan.prefetch)
    # The net reads batches, whose pixels are bytes: FSDP2 would make each anew to cast what it holds.
    fully_shard(net, mesh=mesh, mp_policy=replace(plan.policy, cast_forward_inputs=False))
    for entry in entries:
        _register_entry(net, entry)
    _keep_gathered(units(net), plan)


def _computes_in_float16(component: nn.Module) -> bool:
    """A frozen tower that is published in float16, whose own autocast computes in it."""
    return any(p.dtype == torch.float16 for p in component.parameters())


def _store_in_bf16(net: nn.Module, but: Sequence[nn.Module]) -> None:
    """What is frozen, but for the components that have a 16-bit dtype of their own."""
    own = {id(parameter) for component in but for parameter in component.parameters()}
    for parameter in net.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32 and id(parameter) not in own:
            parameter.data = parameter.data.to(torch.bfloat16)


# ---- activation checkpointing --------------------------------------------------------------------------------------

ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
)
PRODUCTS = ("aten::mm", "aten::addmm")


def _checkpoint(block: nn.Module, how: Checkpointing, traced: bool) -> None:
    # transformers' own checkpointing passes over modules in eval mode, as a frozen language model is.
    context: dict[str, Any] = {"context_fn": _selective_contexts} if how == "selective" else {}
    configs = (getattr(module, "config", None) for module in block.modules())
    config = next((each for each in configs if hasattr(each, "_attn_implementation")), None)
    again = partial(checkpoint, use_reentrant=False, **context)
    block.forward = partial(_recomputed, block.forward, again, config, traced)


def _recomputed(
    forward: Callable[..., Any],
    checkpointed: Callable[..., Any],
    config: PreTrainedConfig | None,
    traced: bool,
    *args: object,
    **kwargs: object,
) -> object:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # A compiled block has its kernel in its graph, but that of spans, which is not compiled (compilation.py).
    if config is None or (traced and config._attn_implementation != SPANS):
        return checkpointed(forward, *args, **kwargs)
    return checkpointed(partial(_attending_by, forward, config, config._attn_implementation), *args, **kwargs)


def _attending_by(
    forward: Callable[..., Any], config: PreTrainedConfig, kernel: str | None, *args: object, **kwargs: object
) -> object:
    # The backward pass computes again what the forward pass did under a kernel that held for it alone (lm_loss.py).
    if (own := config._attn_implementation) == kernel:
        return forward(*args, **kwargs)
    config._attn_implementation = kernel
    try:
        return forward(*args, **kwargs)
    finally:
        config._attn_implementation = own


def _selective_contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Keeps the outputs of attention and of every second matrix product of a block."""
    # Counted apart: with one counter an odd number of products would make the recomputation keep others.
    products = {False: 0, True: 0}

    def keeps(ctx: SelectiveCheckpointContext, op: OpOverload, *args: object, **kwargs: object) -> CheckpointPolicy:
        kept = op.name() in ATTENTION
        if op.name() in PRODUCTS:
            products[ctx.is_recompute] += 1
            kept = products[ctx.is_recompute] % 2 == 1
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(keeps)


# ---- communication -------------------------------------------------------------------------------------------------


def sharding_mesh(device: str, ranks: int, node: int, shard: int | None) -> DeviceMesh:
    """The ranks that share one copy of the parameters: (shard,), or (replicate, shard) where there are several copies.

    Args:
        device: Its type.
        ranks: All of them.
        node: Those of a node.
        shard: `ParallelPlan.shard`.

    Raises:
        ValueError: `shard` is no divisor of the ranks.
    """
    size = node if shard is None else shard
    if ranks % size:
        raise ValueError(f"hardware.shard: found {size}, expected a divisor of the {ranks} ranks")
    if size == ranks:
        return init_device_mesh(device, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (ranks // size, size), mesh_dim_names=("replicate", "shard"))


def units(net: nn.Module) -> list[FSDPModule]:
    """Of FSDP2, the outermost first."""
    return [module for module in net.modules() if isinstance(module, FSDPModule)]


def _register_entry(net: nn.Module, name: str) -> None:
    """Lets the method gather what `net` owns, as `forward` does; where one calls the other, it is gathered already."""
    plain = getattr(net, name)
    register_fsdp_forward_method(net, name)
    entered, state = getattr(net, name), cast(Any, net)._get_fsdp_state()

    def method(*args: object, **kwargs: object) -> object:
        # A nested entry would release the parameters that the outer one still needs for its backward pass.
        inside = state._state_ctx.iter_forward_root is not None
        return (plain if inside else entered)(*args, **kwargs)

    setattr(net, name, method)


def reshard(net: nn.Module) -> None:
    """Brings every unit back into shards; nothing where none is gathered."""
    for unit in units(net):
        unit.reshard()


@contextmanager
def before_last_micro_batch(net: nn.Module, plan: ParallelPlan) -> Iterator[None]:
    """The micro-batches of an optimizer step but the last: gradients add up, and are not exchanged over nodes."""
    root, *_ = units(net)
    once = plan.reduces_once(net)
    root.set_is_last_backward(not once)
    root.set_requires_gradient_sync(not once)
    root.set_requires_all_reduce(False)
    try:
        yield
    finally:
        root.set_is_last_backward(True)
        root.set_requires_gradient_sync(True)


@contextmanager
def gathered(net: nn.Module, plan: ParallelPlan) -> Iterator[None]:
    """While it lasts, each block is gathered once, at its first use; every rank enters and leaves together."""
    found = units(net) if plan.gather_to_generate else []
    for unit in found:
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in found:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()
        if found:
            _keep_gathered(found, plan)


def _keep_gathered(found: Sequence[FSDPModule], plan: ParallelPlan) -> None:
    root, *blocks = found
    frozen = [each for each in blocks if not any(p.requires_grad for p in cast(nn.Module, each).parameters())]
    for unit in [root, *(frozen if plan.gather_frozen else [])]:
        unit.set_reshard_after_forward(False, recurse=False)
    for unit in frozen if plan.gather_frozen else []:
        unit.set_reshard_after_backward(False, recurse=False)


def _prefetch(component: nn.Module, ahead: int) -> None:
    """Within one list of blocks only: what stands in it runs one after the other, and all of it."""
    for row in component.modules():
        if ahead and isinstance(row, nn.ModuleList | nn.Sequential):
            blocks: list[FSDPModule] = [each for each in row if isinstance(each, FSDPModule)]
            for number, block in enumerate(blocks):
                block.set_modules_to_forward_prefetch(blocks[number + 1 : number + 1 + ahead])

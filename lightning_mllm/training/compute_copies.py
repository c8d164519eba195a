"""bf16 on one device, or with a whole copy on each (DDP): matrix products in bfloat16, everything else in float32.

    matrices, frozen    stored in bfloat16
    matrices, trained   stored in float32; a bfloat16 copy for each pass through the net, whose gradient is float32's
    norms, embeddings, what blocks add up, softmax of the loss      float32, by autocast

Autocast alone would copy a matrix at each use, and again for the backward pass of checkpointed blocks. A copy is made
with `Tensor.to`, so gradients arrive in the float32 parameter; while a pass lasts it stands where the parameter stood
(as `torch.func.functional_call` does it), so names, checkpoints and the optimizer never see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

MATRICES = (nn.Linear, nn.Conv2d)
"""Modules that autocast computes in bfloat16. `nn.MultiheadAttention` is left to it: torch's fast path for towers in
eval mode takes float32, and what comes in its place is seven times as slow."""


FAST_BF16 = ("avx512_bf16", "amx_bf16")
"""Instructions by which a CPU multiplies bfloat16 about twice as fast as float32."""


def has_bf16(device: str, instructions: Sequence[str] = ()) -> bool:
    """Whether a type of device has instructions for products of bfloat16; a GPU is asked by `mllm doctor`.

    A CPU has them as AVX512_BF16 or AMX, or as Arm's BF16; one without computes them more slowly than float32.

    Args:
        instructions: One of which a CPU must have; of none given, any.
    """
    if device != "cpu":
        return True
    known = torch.cpu.get_capabilities()
    return any(bool(known.get(name)) for name in instructions or [each for each in known if each.endswith("bf16")])


class ComputeCopies:
    """The bfloat16 copies of a net's matrices, during a pass.

    Args:
        net: After freezing; its frozen matrices are stored in bfloat16 from here on, but for those that an embedding
            shares. Parameters may be on the meta device and be filled later.
    """

    def __init__(self, net: nn.Module) -> None:
        self._slots = [(each._parameters, name) for each in _matrices(net) for name in each._parameters]
        shared = _owned_elsewhere(net, self._slots)
        for weight in self._weights():
            if not weight.requires_grad and id(weight) not in shared:
                weight.data = weight.data.to(torch.bfloat16)
        self._net, self._inside = net, False
        self._copies: dict[int, Tensor] = {}
        """Of the last pass, by the identity of the parameter."""

    def _weights(self) -> list[nn.Parameter]:
        """The matrices in float32, one that two modules share once."""
        found = [parameters[name] for parameters, name in self._slots]
        return list({id(each): each for each in found if each is not None and each.dtype == torch.float32}.values())

    def enter(self, entries: Iterable[str]) -> None:
        """Lets `forward` and other methods of the net compute with copies, in place.

        Args:
            entries: Methods beside `forward` that use parameters and are called from outside.
        """
        for entry in ("forward", *entries):
            setattr(self._net, entry, partial(self._pass, getattr(self._net, entry)))

    def _pass(self, method: Callable[..., object], *args: object, **kwargs: object) -> object:
        with self():
            return method(*args, **kwargs)

    def again(self, forward: Callable[..., object], *args: object, **kwargs: object) -> object:
        """`forward` of a block that is computed again in the backward pass, by the copies of its pass: the checkpoint
        of a block expects the same operations."""
        with self._held():
            return forward(*args, **kwargs)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """While it lasts, modules hold copies and autocast is on; within itself it does nothing."""
        if self._inside:
            yield
            return
        # Those of the pass before are released first.
        self._copies = {}
        self._copies = {id(weight): weight.to(torch.bfloat16) for weight in self._weights()}
        device = next(self._net.parameters()).device.type
        with self._held(), torch.autocast(device, torch.bfloat16, cache_enabled=False):
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        if self._inside:
            yield
            return
        held = [(own, name, weight) for own, name in self._slots if id(weight := own[name]) in self._copies]
        self._inside = True
        try:
            for own, name, weight in held:
                own[name] = cast(nn.Parameter, self._copies[id(weight)])
            yield
        finally:
            for own, name, weight in held:
                own[name] = weight
            self._inside = False


def _matrices(net: nn.Module) -> Iterator[nn.Module]:
    for child in net.children():
        if isinstance(child, MATRICES):
            yield child
        if not isinstance(child, nn.MultiheadAttention):
            yield from _matrices(child)


def _owned_elsewhere(net: nn.Module, slots: Iterable[tuple[dict[str, nn.Parameter | None], str]]) -> set[int]:
    """Parameters that stand in another place too, such as an embedding that is the head's matrix."""
    own = {(id(parameters), name) for parameters, name in slots}
    return {
        id(weight)
        for module in net.modules()
        for name, weight in module._parameters.items()
        if weight is not None and (id(module._parameters), name) not in own
    }

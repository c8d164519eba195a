"""Where every parameter's first value comes from: an earlier stage, a pretrained source, or a declared fresh start.

The order of preference is that one, and a parameter that none of the three names is an error. Fresh values depend on
the run's seed and the part's name only, so they are the same on one rank and on eight.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from lightning_mllm.collectives import all_reduce
from lightning_mllm.component import ComponentSpec, PartlyFresh, ResizableComponent
from lightning_mllm.language.lora import fresh_lora
from lightning_mllm.training.freezing import nearest
from lightning_mllm.training.sharding import copy_into_shard, to_local
from lightning_mllm.weights.finite import is_finite
from lightning_mllm.weights.stage_weights import InitialTensors, is_adapter

Provenance = dict[str, str]
"""Parameter name -> what its first value came from."""
RESIZED = ", resized"
"""Added to a source whose tensor had another size."""


def build_empty(spec: ComponentSpec) -> nn.Module:
    """The part with parameters that have no storage yet; buffers are real, computed on the CPU.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), init_empty_weights(include_buffers=False):
        module = spec.build()
    _tie(module)
    return module


def materialise(module: nn.Module, device: torch.device) -> None:
    """Gives every parameter on the meta device its memory (uninitialised), keeping shared parameters shared."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if parameter not in made:
                empty = torch.empty_like(parameter, device=device)
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            owner._parameters[name] = made[parameter]


def initialise(
    module: nn.Module,
    parts: Mapping[str, ComponentSpec],
    earlier: InitialTensors,
    keys_to_ignore_on_load: Sequence[str] = (),
) -> Provenance:
    """Fills every parameter of `module`; every rank calls it, each reads all and keeps only what it owns.

    Adapters that the net has are filled as such; those of an earlier stage that it has not are folded into
    their tensors.

    Args:
        module: The net, materialised; part `name` is its attribute `name`.
        parts: The specs that built it.
        earlier: Whole tensors of earlier stages under the net's own names.
        keys_to_ignore_on_load: Glob patterns of earlier stages' tensors that the net may lack; those that it has are
            taken all the same.

    Raises:
        ValueError: Naming a parameter that nothing initialises, a tensor that the net lacks, or two shapes that differ
            and that the part's spec cannot resize, or a tensor that holds NaN or infinity.
    """
    targets = _Targets(module, parts)
    adapted = any(map(is_adapter, targets.tensors))
    inherited = earlier if adapted else earlier.plain()
    for name in inherited:
        if name not in targets.names and _matches(name, keys_to_ignore_on_load):
            continue
        targets.fill(name, inherited[name], "stage.init_from")
    for part, spec in parts.items():
        missing = targets.missing(part)
        if not missing:
            continue
        pretrained = spec.pretrained()
        source = "fresh" if pretrained is None else "pretrained"
        if pretrained is None:
            pretrained = () if all(map(is_adapter, missing)) else _fresh(part, spec)
        for tail, tensor in pretrained:
            name = f"{part}.{tail}"
            if targets.inherits(name):
                continue
            targets.fill(name, tensor if adapted else earlier.fold(name, tensor), source)
        if source == "pretrained" and isinstance(spec, PartlyFresh):
            targets.check_patterns(part, spec.fresh)
            left = {name for name in targets.missing(part) if _matches(name.partition(".")[2], spec.fresh)}
            for tail, tensor in _fresh(part, spec) if left else ():
                if (name := f"{part}.{tail}") in left:
                    targets.fill(name, tensor if adapted else earlier.fold(name, tensor), "fresh")
        for name in filter(is_adapter, targets.missing(part)):
            targets.fill(name, fresh_lora(name, targets.tensors[name].shape, generator(name)), "fresh")
        if left := targets.missing(part):
            raise ValueError(
                f"{left[0]}: found no initial value ({len(left)} such parameters in {part!r}), expected an earlier"
                " stage, a pretrained source or a part declared fresh"
            )
    if left := targets.missing():
        raise ValueError(f"{left[0]}: found a parameter outside the parts {sorted(parts)}, expected none")
    targets.refuse_non_finite()
    return targets.seen


def summary(provenance: Provenance) -> dict[str, dict[str, int]]:
    """Part -> source -> how many tensors, for the record of a stage."""
    counts: dict[str, Counter[str]] = {}
    for name, source in provenance.items():
        counts.setdefault(name.split(".")[0], Counter())[source] += 1
    return {part: dict(found) for part, found in counts.items()}


def generator(name: str) -> torch.Generator:
    """A generator on the CPU that depends on the run's seed and on `name` only."""
    seed = os.environ.get("PL_GLOBAL_SEED", "0")
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _fresh(part: str, spec: ComponentSpec) -> Iterable[tuple[str, Tensor]]:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(generator(part).initial_seed())
        return spec.build().state_dict().items()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _tie(module: nn.Module) -> None:
    # `init_empty_weights` re-creates each parameter as it is registered, which separates tied ones.
    for child in module.modules():
        if callable(tie := getattr(child, "tie_weights", None)):
            tie()


class _Targets:
    """The net's tensors under every name by which a source may call them, and what has filled them so far."""

    def __init__(self, module: nn.Module, parts: Mapping[str, ComponentSpec]) -> None:
        self.components = parts
        self.parameters = dict(module.named_parameters())
        self.tensors: dict[str, Tensor] = {**self.parameters, **dict(module.named_buffers())}
        self.seen: Provenance = {}
        own = {id(parameter): name for name, parameter in self.parameters.items()}
        self.names = {name: name for name in self.tensors}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            self.names[name] = own[id(parameter)]
        # What an adapter wraps is called in files as if it were not wrapped.
        self.names |= {name.replace(".base_layer.", "."): at for name, at in self.names.items()}

    def missing(self, part: str = "") -> list[str]:
        mine = [name for name in self.parameters if not part or name.split(".")[0] == part]
        return [name for name in mine if name not in self.seen]

    def check_patterns(self, part: str, patterns: Sequence[str]) -> None:
        """Each pattern names some tensor of the part, which is part of the contract of `fresh`.

        Raises:
            ValueError: One matches nothing.
        """
        tails = [name.removeprefix(f"{part}.") for name in self.names if name.startswith(f"{part}.")]
        for pattern in patterns:
            if not any(fnmatchcase(tail, pattern) for tail in tails):
                near = ", ".join(map(repr, nearest(pattern, tails, 2)))
                raise ValueError(f"{part}, fresh: {pattern!r} matches no tensor, expected something like {near}")

    def refuse_non_finite(self) -> None:
        """Refuses first values that are none; all ranks know what any of them found in its shards.

        Raises:
            ValueError: Naming the first of these tensors.
        """
        names = sorted(self.seen)
        wrong = [not is_finite(to_local(self.tensors[name])) for name in names]
        device = next((to_local(self.tensors[name]).device for name in names), torch.device("cpu"))
        flags = all_reduce(torch.tensor(wrong, dtype=torch.int32, device=device), "max").tolist()
        broken = [name for name, flag in zip(names, flags, strict=True) if flag]
        if broken:
            raise ValueError(
                f"{self.seen[broken[0]]}: tensor {broken[0]!r} ({len(broken)} such tensors) holds NaN or infinity,"
                " expected finite numbers"
            )

    def inherits(self, name: str) -> bool:
        """Whether an earlier stage has filled the tensor called `name`."""
        return self.seen.get(self.names.get(name, ""), "").removesuffix(RESIZED) == "stage.init_from"

    def fill(self, name: str, tensor: Tensor, source: str) -> None:
        if name not in self.names:
            raise ValueError(
                f"{source}: tensor {name!r} is not in the net, expected something like"
                f" {', '.join(map(repr, nearest(name, self.tensors, 2)))}"
            )
        target = self.tensors[self.names[name]]
        part, _, tail = name.partition(".")
        spec = self.components.get(part)
        if target.shape != tensor.shape and isinstance(spec, ResizableComponent):
            fitting = spec.resized(tail, tensor, target.shape)
            tensor, source = (tensor, source) if fitting is None else (fitting, f"{source}{RESIZED}")
        if target.shape != tensor.shape:
            raise ValueError(
                f"{source}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {tuple(target.shape)}"
            )
        copy_into_shard(target, tensor)
        self.seen[self.names[name]] = source

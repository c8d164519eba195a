"""What a part of a net is before it is built: sizes, names and where its weights come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class ComponentSpec(Protocol):
    """A frozen dataclass, written in YAML, that builds one part of a net and knows its pretrained weights.

    Building and filling are apart so that a part can be built without memory (on the meta device), cut over the ranks
    and only then filled, tensor by tensor.
    """

    def build(self) -> nn.Module:
        """The part, with whatever initial values its layers have; no file is read."""
        ...

    def pretrained(self) -> Iterable[tuple[str, Tensor]] | None:
        """The pretrained tensors, read one at a time, under the names of `build().state_dict()`.

        None declares the part fresh: it keeps the random values of `build()`.
        """
        ...

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """The submodules of a built part that are cut over the ranks one by one (its transformer blocks)."""
        ...


@runtime_checkable
class ResizableComponent(Protocol):
    """A spec whose part can start from tensors of other sizes."""

    def resized(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
        """`tensor`, called `name` in the part, made to fit `shape`; None if it is another tensor altogether."""
        ...


@runtime_checkable
class PartlyFresh(Protocol):
    """A spec whose pretrained source does not hold the whole part."""

    @property
    def fresh(self) -> Sequence[str]:
        """Glob patterns of the part's tensors that keep the random values of `build()` where the source has none."""
        ...


class Composite:
    """What a spec of several parts has in common with that of one; the parts' tensors stand below the parts' names."""

    @property
    def components(self) -> Mapping[str, ComponentSpec]:
        """Name of a submodule -> the spec that builds it."""
        raise AssertionError(f"{type(self).__name__} has no parts")

    @property
    def fresh(self) -> Sequence[str]:
        """Glob patterns of what the parts declare fresh."""
        patterns: list[str] = []
        for name, spec in self.components.items():
            if spec.pretrained() is None:
                patterns.append(f"{name}.*")
            elif isinstance(spec, PartlyFresh):
                patterns += [f"{name}.{pattern}" for pattern in spec.fresh]
        return patterns

    def pretrained(self) -> Iterator[tuple[str, Tensor]] | None:
        """The parts' tensors, one part after another; None if all parts are fresh."""
        sources = {name: spec.pretrained() for name, spec in self.components.items()}
        if all(source is None for source in sources.values()):
            return None
        return ((f"{name}.{tail}", tensor) for name, source in sources.items() for tail, tensor in source or ())

    def resized(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
        """As the part does it that the tensor belongs to."""
        for part, spec in self.components.items():
            if name.startswith(f"{part}.") and isinstance(spec, ResizableComponent):
                return spec.resized(name.removeprefix(f"{part}."), tensor, shape)
        return None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """Those of all parts."""
        return [block for name, spec in self.components.items() for block in spec.blocks(module.get_submodule(name))]

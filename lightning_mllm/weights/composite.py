"""A part that is made of parts, each with a source of weights of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from lightning_mllm.component import ComponentSpec, PartlyFresh, ResizableComponent


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

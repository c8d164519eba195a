"""What a connector of one's own must be: a frozen dataclass that builds from two widths.

    @dataclass(frozen=True, kw_only=True)
    class Gated:
        in_width: int = 0     # of the tower's vectors, filled in by the architecture
        out_width: int = 0    # of the language model's, filled in by the architecture

        def build(self) -> nn.Module: ...                 # f[N, V, in_width] -> f[N, W, out_width]; W is V in LLaVA
        def pretrained(self) -> None: ...                 # fresh, or the pretrained tensors by name
        def blocks(self, module) -> list[nn.Module]: ...  # what is sharded by itself, or nothing

YAML names it by its place: `connector: {class_path: my_parts.Gated}`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn


@runtime_checkable
class ConnectorSpec(Protocol):
    """A `ComponentSpec` with widths to be filled in; results are `Any` so that a user's methods need no annotations."""

    def build(self) -> Any:
        """The module; no file is read."""
        ...

    def pretrained(self) -> Any:
        """As `ComponentSpec.pretrained`."""
        ...

    def blocks(self, module: Any) -> Any:
        """As `ComponentSpec.blocks`."""
        ...


@runtime_checkable
class ViewsConnectorSpec(ConnectorSpec, Protocol):
    """A connector of groups of vectors and several views (SPHINX): its module has `by_image` as `MixedProjection`."""

    def vectors(self, groups: Any, views: Any) -> Any:
        """As `MixedConnector.vectors`."""
        ...


@dataclass(frozen=True, kw_only=True)
class FreshConnector:
    """What connectors of two widths share that start from random values."""

    in_width: int = 0
    """Width of the tower; filled in by the architecture."""
    out_width: int = 0
    """Width of the language model; filled in by the architecture."""

    def pretrained(self) -> None:
        return None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []


Spec = TypeVar("Spec", bound=ConnectorSpec)


def with_widths(spec: Spec, **widths: int | tuple[int, ...]) -> Spec:
    """The spec with its widths filled in.

    Raises:
        ValueError: It is no dataclass, or lacks one of the fields.
    """
    found: Any = spec
    names = [each.name for each in fields(found) if each.init] if is_dataclass(spec) else []
    if missing := [name for name in widths if name not in names]:
        raise ValueError(
            f"connector: {type(spec).__qualname__} has no field {missing[0]!r}, expected a frozen dataclass with"
            f" {' and '.join(widths)}, which the architecture fills in"
        )
    return replace(found, **widths)

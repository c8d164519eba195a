"""Connectors that a user might write: one on its own, without annotations of results, and one from ours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_mllm.connectors.projector import MlpConnector


@dataclass(frozen=True, kw_only=True)
class Gated:
    in_width: int = 0
    out_width: int = 0
    inner: int = 8

    def build(self):
        return nn.Sequential(nn.Linear(self.in_width, 2 * self.inner), nn.GLU(), nn.Linear(self.inner, self.out_width))

    def pretrained(self):
        return None

    def blocks(self, module):
        return []


@dataclass(frozen=True, kw_only=True)
class Deep(MlpConnector):
    depth: int = 3


@dataclass(frozen=True, kw_only=True)
class Unsized:
    """Has no widths."""

    def build(self):
        return nn.Identity()

    def pretrained(self):
        return None

    def blocks(self, module):
        return []


class Other:
    """Builds nothing."""

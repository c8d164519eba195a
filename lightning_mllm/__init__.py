"""Multimodal language models in PyTorch Lightning: `load` a trained one; everything else is the `mllm` command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_mllm.inference import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Importing torch and transformers takes seconds: `import lightning_mllm` alone must not.
    if name == "load":
        from lightning_mllm.inference import load

        return load
    raise AttributeError(f"module 'lightning_mllm' has no attribute '{name}'")

"""Trained models for use: `load(RUN).answer(image, question)`."""

from __future__ import annotations

from lightning_mllm.inference.conversation import Conversation as Conversation
from lightning_mllm.inference.loading import load as load
from lightning_mllm.inference.loading import load_apart as load_apart
from lightning_mllm.inference.loading import stage_of as stage_of
from lightning_mllm.inference.model import Model as Model

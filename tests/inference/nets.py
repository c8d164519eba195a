"""A net of every architecture that answers, in small."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from lightning_mllm.architectures.blip2 import Blip2
from lightning_mllm.architectures.cogvlm import CogVLM
from lightning_mllm.architectures.llava import LLaVA
from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.inference import Model
from lightning_mllm.language.generation import Decoding
from tests.architectures.blip2s import INSTRUCTED, built, eva
from tests.architectures.sphinxes import FIVE

NETS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llava": (LLaVA, {}),
    "blip2_opt": (Blip2, eva("opt")),
    "blip2_t5": (Blip2, eva("t5")),
    "instructblip": (Blip2, INSTRUCTED | eva("llama")),
    "sphinx": (Sphinx, {**FIVE, "max_length": 400}),
    "cogvlm": (CogVLM, {}),
}
FEW = Decoding(max_new_tokens=12)


@cache
def model_of(name: str) -> Model:
    """Random values large enough that answers are no ties, the same whichever test asks first."""
    kind, settings = NETS[name]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return Model(built(kind, spread=0.2, **settings))

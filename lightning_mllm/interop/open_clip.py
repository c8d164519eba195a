"""Files of open_clip, for a CLIP of both towers."""

from __future__ import annotations

from lightning_mllm.interop.format import Format
from lightning_mllm.weights.keymap import KeyMap

KEYS = KeyMap(
    (
        ("clip.logit_scale", "logit_scale", (lambda ours: ours.reshape(()), lambda theirs: theirs.reshape(1))),
        ("clip.{...}", "{...}"),
    )
)
"""Ours <-> theirs."""

FORMAT = Format(architecture="lightning_mllm.architectures.clip.ClipPretraining", keys=KEYS)

"""Files of a language model of transformers, whose names are ours below `language.`."""

from __future__ import annotations

from lightning_mllm.interop.format import Format
from lightning_mllm.weights.keymap import KeyMap

KEYS = KeyMap((("language.{...}", "{...}"),))
"""Ours <-> theirs."""

FORMAT = Format(architecture="lightning_mllm.architectures.language_model.LanguageModelPretraining", keys=KEYS)

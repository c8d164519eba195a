"""LoRA adapters alone, as a folder that `PeftModel.from_pretrained(base, folder)` loads.

The base is the export of the stage that the adapters were trained on. What else their stage trained (LLaVA's connector)
travels along whole, as peft's `modules_to_save`.

    ours   language.model.layers.0.self_attn.q_proj.lora_A.default.weight
    file   language_model.model.layers.0.self_attn.q_proj                            by the key table of the layout
    net    model.language_model.layers.0.self_attn.q_proj                            by transformers' own renaming
    peft   base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from lightning_mllm.export.own_layout import OwnFolder
from lightning_mllm.interop.format import HfFolder, Tensors, formats_of
from lightning_mllm.language.lora import ADAPTER
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.files import write_tensors

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """The adapters of a net, and what they adapt."""

    layout: HfFolder
    """Of the net without its adapters."""
    tensors: dict[str, Tensor]
    """Under peft's names."""
    config: LoraConfig
    base: Path
    """Where `write` puts the net without what was trained: only for the comparison."""
    blanked: frozenset[str]
    """Names in files of the base's tensors that the adapters' folder brings: zeros there."""

    @property
    def compared(self) -> Literal["answers", "pairs"]:
        return self.layout.compared

    @property
    def asks(self) -> bool:
        return self.layout.asks

    @property
    def code(self) -> tuple[Path, ...]:
        return ()

    @property
    def caveat(self) -> str:
        return self.layout.caveat

    @property
    def advice(self) -> str:
        return self.layout.advice

    @classmethod
    def of(
        cls, module: MultimodalModule, layout: HfFolder | OwnFolder, base: Path, trained: Collection[str]
    ) -> AdapterFolder:
        """The adapters of a net whose last stage trained them.

        Args:
            module: With adapters.
            layout: Of the net without them.
            base: Where the net without what was trained is written.
            trained: Names of the tensors that the stage trained.

        Raises:
            ValueError: It trained none, no class of transformers holds the net, or a tensor that it trained is none
                that peft can put there.
        """
        if module.lora is None:
            raise ValueError("--adapter-only: found no adapters, expected a run whose last stage trained some (lora)")
        if not isinstance(layout, HfFolder) or layout.code:
            raise ValueError(
                f"--adapter-only: found a {type(module).__name__} that no class of transformers holds, expected one"
                " that peft can load; without --adapter-only the adapters are merged"
            )
        with torch.device("meta"):
            net: Any = getattr(transformers, _class(layout))(layout.config)
        names, state = _names(module, layout, net), module.net.state_dict()
        layers = sorted({name.rpartition(".lora_A.")[0] for name in state if ".lora_A." in name})
        whole = sorted({name.replace(".base_layer.", ".") for name in trained if ".lora_" not in name})
        targets = {layer: _module_of(names, f"{layer}.weight") for layer in layers}
        config = LoraConfig(
            r=module.lora.r,
            lora_alpha=module.lora.alpha,
            lora_dropout=module.lora.dropout,
            target_modules=sorted(targets.values()),
            modules_to_save=sorted({_module_of(names, name) for name in whole}) or None,
            inference_mode=True,
        )
        with torch.device("meta"):
            known = get_peft_model_state_dict(get_peft_model(net, config))
        tensors = {
            f"{PREFIX}{theirs}.lora_{part}.weight": state[f"{layer}.lora_{part}.{ADAPTER}.weight"]
            for layer, theirs in targets.items()
            for part in "AB"
        }
        ours = {each.loaded: name for name, each in names.items()}
        brought = {name: ours[name.removeprefix(PREFIX)] for name in known.keys() - tensors.keys()}
        tensors |= {name: state[mine] for name, mine in brought.items()}
        blanked = frozenset(names[mine].filed for mine in brought.values())
        return cls(layout=layout, tensors=tensors, config=config, base=base, blanked=blanked)

    def write(self, folder: Path) -> None:
        """Writes adapters, tokenizer and processor to `folder`, and what they adapt to `base`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(str(folder))
        self.layout.processor.save_pretrained(folder)
        write_tensors(folder / WEIGHTS, self.tensors)
        replace(self.layout, tensors=self._blank).write(self.base)

    def _blank(self) -> Tensors:
        for name, tensor in self.layout.tensors():
            yield name, torch.zeros_like(tensor) if name in self.blanked else tensor


class Names(NamedTuple):
    """What a tensor is called by transformers."""

    filed: str
    """In files."""
    loaded: str
    """In the net."""


def _class(layout: HfFolder) -> str:
    return (layout.config.architectures or [""])[0]


def _module_of(names: Mapping[str, Names], tensor: str) -> str:
    """The module of the class of transformers whose tensor it is."""
    module = names[tensor].loaded.rpartition(".")[0] if tensor in names else ""
    if not module:
        raise ValueError(
            f"--adapter-only: {tensor} was trained and is no tensor of a module of its own in transformers' class,"
            " expected adapters and whole modules; without --adapter-only the adapters are merged"
        )
    return module


def _names(module: MultimodalModule, layout: HfFolder, net: Any) -> dict[str, Names]:
    """Our names, adapters left out -> theirs, where one tensor of ours is one of theirs."""
    (form,) = (each for _, each in formats_of(type(module)) if each.hf_class == _class(layout))
    table, known = form.table(module.components), net.state_dict()
    renamings = [each for each in get_model_conversion_mapping(net) if isinstance(each, WeightRenaming)]
    found: dict[str, Names] = {}
    for name, tensor in _plain(module):
        try:
            theirs = [each for each, _ in table.to_theirs([(name, tensor)])]
        except ValueError:
            continue  # one of several that are one tensor there
        if len(theirs) == 1:
            loaded, _ = rename_source_key(theirs[0], renamings, [], net.base_model_prefix, known)
            if loaded in known:
                found[name] = Names(theirs[0], loaded)
    return found


def _plain(module: MultimodalModule) -> Tensors:
    """The net's tensors without adapters, under plain names, of no memory."""
    for name, tensor in module.net.state_dict().items():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), torch.empty_like(tensor, device="meta")

"""Training from what a frozen tower made of images once: which features those are, and a net without the tower.

    spec, weights, preprocessing --facts_of--> key --> FOLDER/<key>     written by `mllm cache`, read in training
    net with `vision`  --use_cached_features--> `vision` is a CachedVision, the processor a CachedProcessor

The key holds all that decides the features of given image bytes: fields of the spec and what they refer to, a digest of
the weights that the stage would start from, the image policy. Names and places of files are no part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning import LightningDataModule
from torch import Tensor, nn

from lightning_mllm.component import ComponentSpec, PartlyFresh
from lightning_mllm.interop.format import key_maps
from lightning_mllm.processing.cached_processor import CachedProcessor
from lightning_mllm.training.freezing import FreezeRow
from lightning_mllm.training.initialise import Provenance, build_empty, initialise, materialise
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.vision.cached import CachedTower
from lightning_mllm.weights.feature_store import FACTS, FORMAT, FeatureStore
from lightning_mllm.weights.stage_weights import InitialTensors, initial_tensors

VISION = "vision"
SETTING = "hardware.feature_cache"
DRAWS = ("random_area", "random_flip")
"""Fields of an image policy that evaluation does not read."""

Facts = dict[str, Any]
"""JSON."""


def check_still(module: MultimodalModule) -> None:
    """Refuses a net whose features of an image change in training, as far as it is known before the tower is.

    Raises:
        ValueError: It has no tower, or training draws parts or mirror images of pictures.
    """
    if VISION not in module.components:
        raise ValueError(f"{SETTING}: found {type(module).__name__}, which has no part {VISION!r}, expected a tower")
    policy = module.processor.image
    if not is_dataclass(policy):
        raise ValueError(
            f"{SETTING}: found the image policy {type(policy).__name__}, expected a dataclass, whose fields say what"
            " becomes of an image"
        )
    if getattr(policy, "random", False):
        found = ", ".join(f"image.{name} {getattr(policy, name, None)}" for name in DRAWS)
        raise ValueError(
            f"{SETTING}: found {found}, by which training draws other pixels of an image each time, expected images"
            " that are not augmented"
        )


def check_frozen(module: MultimodalModule, names: Iterable[str]) -> None:
    """Refuses a stage that trains the tower.

    Args:
        module: Its stage's table is asked.
        names: Of the tower's parameters, in the tower.

    Raises:
        ValueError: It trains one of them, or an adapter of one.
    """
    assert module.stage is not None
    lora = () if module.lora is None else module.lora.targets
    for name in (f"{VISION}.{each}" for each in names):
        patterns = [p for p, how in module.table.items() if fnmatchcase(name, p) and not _excluded(name, how.exclude)]
        layer = name.rpartition(".")[0]
        patterns += [f"adapters {target}" for target in lora if "*" in target and fnmatchcase(layer, target)]
        if patterns:
            raise ValueError(
                f"{SETTING}: stage {module.stage.name!r} trains {name} ({patterns[0]}), expected a frozen tower, whose"
                " features of an image stay as they are"
            )


def _excluded(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def earlier_vision(module: MultimodalModule, init_from: Mapping[str, float]) -> InitialTensors:
    """What the tower takes from the weights that a stage starts from; nothing where none of them has trained it.

    Args:
        module: Knows its folder of runs.
        init_from: As in the stage's settings.

    Raises:
        ValueError: A source is missing.
    """
    tables = key_maps(type(module), module.components) if init_from else {}
    return initial_tensors(init_from, Path(module.runs), tables, check=False).below(f"{VISION}.")


def facts_of(module: MultimodalModule, earlier: InitialTensors) -> Facts:
    """What decides the features of an image; reads the tower's weights, a tensor at a time, and builds nothing.

    Args:
        module: Not built.
        earlier: `earlier_vision`.

    Raises:
        ValueError: As `check_still`; or the weights cannot be read.
    """
    check_still(module)
    spec, policy = module.components[VISION], module.processor.image
    image = {"class": _class_of(policy)}
    image |= {each.name: getattr(policy, each.name) for each in fields(policy) if each.name not in DRAWS}
    return _plain({"tower": _described(spec), "weights": _digest(spec, earlier), "image": image})


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of the store of these features."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object) -> Facts:
    return json.loads(json.dumps(value))


def _described(value: object) -> object:
    """The fields of a spec; those that say where something is, by what is there."""
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    found: dict[str, object] = {"class": _class_of(value)}
    found |= {each.name: _described(getattr(value, each.name)) for each in fields(value) if each.name != "weights"}
    found |= {name: _described(getattr(value, name)) for name in ("mean", "std") if hasattr(value, name)}
    source: Any = getattr(value, "source", None)
    if hasattr(source, "read"):
        found |= {"model": source.read()["model_cfg"], "config": None}
    return found


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _digest(spec: ComponentSpec, earlier: InitialTensors) -> str:
    """SHA-256 of the weights that the tower would start from: names, dtypes, shapes and bytes."""
    found = {name: _tensor_digest(earlier[name]) for name in earlier}
    whole = bool(found) and {f"{VISION}.{name}" for name, _ in build_empty(spec).named_parameters()} <= found.keys()
    pretrained = None if whole else spec.pretrained()
    for tail, tensor in pretrained or ():
        if (name := f"{VISION}.{tail}") not in found:
            found[name] = _tensor_digest(tensor)
    if not whole and (pretrained is None or (isinstance(spec, PartlyFresh) and spec.fresh)):
        found["fresh"] = f"seed {os.environ.get('PL_GLOBAL_SEED', '0')}, torch {torch.__version__}"
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    head = f"{tensor.dtype} {tuple(tensor.shape)} "
    return head + hashlib.sha256(content.data).hexdigest()


# ---- the tower, once -----------------------------------------------------------------------------------------------


def built_tower(
    module: MultimodalModule, earlier: InitialTensors, device: torch.device
) -> tuple[nn.Module, Provenance]:
    """The tower alone, with its weights as they are stored, and where those are from."""
    spec = module.components[VISION]
    part = nn.ModuleDict({VISION: build_empty(spec)}).requires_grad_(False)
    materialise(part, device)
    found = initialise(part, {VISION: spec}, earlier)
    return part.to(device).eval()[VISION], found


Seen = Float[Tensor, "N _ _"] | tuple[Float[Tensor, "N _ _"], ...]
"""What a tower gives: f[N, V, D], or that of each group."""


def seen(tower: nn.Module, pixels: UInt8[Tensor, "N 3 H W"], bf16: bool = False) -> Seen:
    """What a tower makes of views, without autograd; of `hardware.precision: bf16`, by autocast."""
    with torch.inference_mode(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
        return tower(pixels)


def groups_of(found: Seen) -> tuple[Float[Tensor, "N _ _"], ...]:
    return found if isinstance(found, tuple) else (found,)


def flat(found: Seen, dtype: torch.dtype) -> Float[Tensor, "N F"]:
    """As the store keeps them, on the CPU.

    Raises:
        ValueError: A number is not finite in `dtype`.
    """
    rows = torch.cat([group.flatten(1) for group in groups_of(found)], dim=1).to("cpu", dtype)
    if not rows.isfinite().all():
        raise ValueError(f"--dtype: found features that are not finite in {dtype}, expected a dtype that holds them")
    return rows


# ---- training without it -------------------------------------------------------------------------------------------


def use_cached_features(module: MultimodalModule, datamodule: LightningDataModule, cache: Path) -> FeatureStore:
    """Gives the net a `CachedVision` for its tower, before it is built, and its data features for pixels.

    Args:
        module: With its stage and its parallel plan.
        datamodule: Has the net's processor.
        cache: The folder that `mllm cache` wrote to.

    Raises:
        ValueError: The features of an image do not stay as they are, or those of this tower are not there.
    """
    store = opened(module, cache)
    check_frozen(module, [name.removeprefix(f"{VISION}.") for name in store.facts["provenance"]])
    processor = CachedProcessor(module.processor, store)
    if getattr(datamodule, "processor", None) is not module.processor:
        raise ValueError(
            f"{SETTING}: found no processor in {type(datamodule).__name__}, expected the net's, which gives features in"
            " place of pixels"
        )
    datamodule.processor = module.processor = processor  # pyright: ignore[reportAttributeAccessIssue]
    bf16 = module.parallel.precision == "bf16"
    module.components[VISION] = CachedTower(
        groups=tuple(store.groups), mixed=store.facts["mixed"], dtype=torch.bfloat16 if bf16 else torch.float32
    )
    # An ancestor may hold a tower.
    vars(module)["keys_to_ignore_on_load"] = (*module.keys_to_ignore_on_load, f"{VISION}.*")
    module.provenance = dict(store.facts["provenance"])
    counts: dict[str, int] = store.facts["parameters"]
    module.left_out = [
        FreezeRow(
            part=VISION,
            parameters=count,
            trained=False,
            lr=None,
            weight_decay=None,
            dtype="bfloat16" if bf16 and dtype == "float32" and "float16" not in counts else dtype,
        )
        for dtype, count in counts.items()
    ]
    return store


def opened(module: MultimodalModule, cache: Path) -> FeatureStore:
    """The store of the net's tower.

    Raises:
        ValueError: As `use_cached_features`.
    """
    assert module.stage is not None
    facts = facts_of(module, earlier_vision(module, module.stage.init_from))
    folder = cache / key_of(facts)
    if not (folder / FACTS).is_file():
        check_frozen(module, [name for name, _ in build_empty(module.components[VISION]).named_parameters()])
        raise ValueError(
            f"{SETTING}: found no features of this tower in {cache}{_nearest(facts, cache)}, expected {folder.name};"
            " mllm cache writes them"
        )
    store = FeatureStore(folder)
    if module.parallel.precision == "fp32" and (found := store.facts["computed_in"]) != "fp32":
        raise ValueError(
            f"{SETTING}: found features in {folder} that a tower computed in {found}, expected fp32, as"
            " hardware.precision is; write them in fp32 to another folder"
        )
    return store


def _nearest(facts: Facts, cache: Path) -> str:
    """In which facts the store differs that differs in fewest."""
    found: list[list[str]] = []
    for file in sorted(cache.glob(f"*/{FACTS}")):
        known = json.loads(file.read_text(encoding="utf-8")).get("of", {})
        found.append([name for name in facts if known.get(name) != facts[name]])
    return f" (there are some of another {' and '.join(min(found, key=len))})" if found else ""

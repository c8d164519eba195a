"""What one stage leaves to the next: the tensors it trained, and a record of where they came from.

runs/<experiment>/<stage>/weights/model.safetensors   only what the stage trained
runs/<experiment>/<stage>/weights/stage.json          stage, steps, names, lineage with digests, settings

init_from {instruct: 1.0}  ->  instruct's tensors over align's tensors      (a later stage wins)
init_from {real: 0.5, text: 0.5}  ->  0.5 real + 0.5 text                   (SPHINX; see mixing.py)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_mllm.weights.files import BESIDE, TensorFiles, sha256, write_in_pieces, write_text
from lightning_mllm.weights.keymap import KeyMap
from lightning_mllm.weights.lineage import FORMAT, RECORD, WEIGHTS, InitSource, Lineage, Record, portable
from lightning_mllm.weights.mixing import Mixture, coefficients
from lightning_mllm.weights.safetensors_writer import HeldTensors, TensorStream


def write_stage(
    run_dir: Path,
    tensors: Mapping[str, Tensor] | TensorStream,
    *,
    stage: str,
    settings: dict[str, Any],
    init_from: Mapping[str, float],
    steps: int,
    runs: Path | None = None,
    lora_scale: float | None = None,
) -> Path:
    """Writes the weights of a finished stage, the record last: without a record the stage is unfinished.

    Args:
        run_dir: The stage's run folder.
        tensors: What the stage trained, under the net's names; of a stream, one tensor is in memory at a time.
        stage: The stage's name in the architecture.
        settings: Facts to keep (JSON); `settings["config"]`, where there is one, is what the hash identifies.
        init_from: As in the stage's settings.
        steps: Optimizer steps taken.
        runs: What names in `init_from` are relative to; None looks in the folders above `run_dir`.
        lora_scale: alpha / r of the adapters in `tensors`; read from `settings` where it is not given.

    Returns:
        The folder of weights.

    Raises:
        OSError: The disk is full or the folder cannot be written.
        ValueError: A source is gone.
    """
    folder = run_dir / WEIGHTS
    runs = runs or run_dir.parent
    init_from = portable(init_from, run_dir, runs)
    lineage = Lineage.read(init_from, runs, near=run_dir)
    stream = tensors if isinstance(tensors, TensorStream) else HeldTensors(tensors)
    layout = stream.layout()
    own = {_plain(name): name for name in layout}
    if lora_scale is None:
        lora_scale = _scale_in(settings)
    assert lora_scale is not None or not any(map(is_adapter, own)), "adapters need their scale"
    (folder / RECORD).unlink(missing_ok=True)
    for left in folder.glob(".*.writing"):
        left.unlink()  # by a run that was killed
    plain = {name: layout[own[name]] for name in own}
    write_in_pieces(folder / "model.safetensors", plain, lambda name: stream.pieces(own[name]))
    facts = {"stage": stage, "steps": steps, "init_from": dict(init_from), "lora_scale": lora_scale}
    write_record(folder, lineage, names=own, settings=settings, **facts)
    return folder


def write_record(
    folder: Path, lineage: Lineage, *, names: Iterable[str], settings: dict[str, Any], **facts: object
) -> None:
    """Writes `stage.json` beside the tensors.

    Args:
        names: Of the tensors.
        settings: As in `write_stage`.
        facts: What else the record says: stage, steps, init_from, lora_scale; `whole: True` where all of the net's
            tensors are in the folder, so that no source is ever read.
    """
    record = {
        "format": FORMAT,
        **facts,
        "lineage": [{"source": a.source, "stage": a.stage, "sha256": a.digest} for a in lineage.sources],
        "sha256": sha256(folder),
        "config_hash": config_hash(settings.get("config", settings)),
        "names": sorted(names),
        "settings": settings,
    }
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def config_hash(config: object) -> str:
    """SHA-256 of a configuration as canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def initial_tensors(
    init_from: Mapping[str, float], runs: Path, key_maps: Mapping[str, KeyMap], *, check: bool = True
) -> InitialTensors:
    """The tensors that a stage starts from, under the net's names; none is read yet.

    Args:
        init_from: Source -> weight; weights sum to 1. One source is taken as it is, several are mixed in float32.
        runs: What sources are relative to.
        key_maps: The architecture's tables, by which foreign weights are renamed; the one that knows all names is used.
        check: Whether the sources are read once to see that none has changed; one rank does that for all.

    Raises:
        ValueError: A source is missing or changed, its names match no table, or mixed sources have other names or
            shapes than one another.
    """
    if not init_from:
        return InitialTensors({}, {})
    weights = coefficients(init_from, where="init_from")
    if check:
        Lineage.read(init_from, runs)
    return _mixed({source: tensors_of(InitSource.find(source, runs), runs, key_maps) for source in init_from}, weights)


class InitialTensors(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for.

    A net that has adapters takes all of them as they are. A net without takes `plain()`, and passes what else it reads
    (a pretrained base) through `fold`, so that what the adapters learned is part of it.
    """

    def __init__(self, tensors: Mapping[str, Callable[[], Tensor]], scales: Mapping[str, float]) -> None:
        self._tensors = dict(tensors)
        self._scales = dict(scales)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def adapted(self) -> list[str]:
        """The names of the tensors that an adapter changes, here or in the net."""
        return list(self._scales)

    def plain(self) -> InitialTensors:
        """The same without adapters, which are folded into those of their tensors that are here."""
        return InitialTensors(
            {
                name: (lambda name=name, read=read: self.fold(name, read())) if name in self._scales else read
                for name, read in self._tensors.items()
                if not is_adapter(name)
            },
            {},
        )

    def below(self, prefix: str) -> InitialTensors:
        """Those whose names begin with `prefix`, with their adapters."""
        return InitialTensors(
            {name: read for name, read in self._tensors.items() if name.startswith(prefix)},
            {name: scale for name, scale in self._scales.items() if name.startswith(prefix)},
        )

    def fold(self, name: str, tensor: Tensor) -> Tensor:
        """`tensor` called `name` with what its adapter learned, if any: W + alpha / r * B A (arXiv 2106.09685)."""
        if name not in self._scales:
            return tensor
        down, up = (self._tensors[each]().float() for each in self._pair(name))
        return (tensor.float() + self._scales[name] * (up @ down)).to(tensor.dtype)

    def over(self, older: InitialTensors) -> InitialTensors:
        """These tensors laid over older ones; an older adapter of a tensor that is trained anew is gone."""
        gone = {pair for name in older._scales if name in self._tensors for pair in older._pair(name)}
        kept = {name: read for name, read in older._tensors.items() if name not in gone}
        scales = {name: scale for name, scale in older._scales.items() if name not in self._tensors}
        return InitialTensors({**kept, **self._tensors}, {**scales, **self._scales})

    def _pair(self, name: str) -> tuple[str, str]:
        module = name.removesuffix(".weight")
        down = next(each for each in self._tensors if each.startswith(f"{module}.lora_A."))
        return down, down.replace(".lora_A.", ".lora_B.")


def is_adapter(name: str) -> bool:
    """Whether a tensor is one half of a low-rank adapter."""
    return ".lora_A." in name or ".lora_B." in name


def tensors_of(earlier: InitSource, runs: Path, key_maps: Mapping[str, KeyMap]) -> InitialTensors:
    """All that a source gives, under the net's names: a stage's own tensors over those that it started from.

    Raises:
        ValueError: As `initial_tensors`.
    """
    files = TensorFiles(earlier.path)
    if earlier.record is None:
        return InitialTensors(_translate(earlier, files, key_maps), {})
    scale = earlier.record.get("lora_scale")
    own = InitialTensors(
        {name: (lambda name=name: files[name]) for name in files},
        {name.split(".lora_A.")[0] + ".weight": float(scale) for name in files if ".lora_A." in name and scale},
    )
    before = {source: tensors_of(parent, runs, key_maps) for source, parent in earlier.parents(runs).items()}
    return own.over(_mixed(before, earlier.init_from)) if before else own


def mixture(known: Mapping[str, InitialTensors], weights: Mapping[str, float]) -> Mixture:
    """Sources by their weights, which together are 1.

    Raises:
        ValueError: A source has adapters, or the sources have other names than one another.
    """
    for source, each in known.items():
        if each.adapted:
            raise ValueError(f"{source!r} has adapters, expected whole tensors where sources are mixed")
    return Mixture(known, weights)


def _mixed(known: Mapping[str, InitialTensors], weights: Mapping[str, float]) -> InitialTensors:
    if len(known) == 1:
        return next(iter(known.values()))
    mixed = mixture(known, weights)
    return InitialTensors({name: (lambda name=name: mixed[name]) for name in mixed}, {})


def _translate(
    earlier: InitSource, files: TensorFiles, key_maps: Mapping[str, KeyMap]
) -> Mapping[str, Callable[[], Tensor]]:
    """Our names by the first table that knows all of theirs."""
    config = _config(earlier.path)
    more = TensorFiles(earlier.path / BESIDE) if (earlier.path / BESIDE).is_file() else {}
    beside = {name: (lambda name=name: more[name]) for name in more}
    refusals = []
    for layout, key_map in key_maps.items():
        try:
            return {**key_map.lazily(files, config), **beside}
        except ValueError as error:
            refusals.append(f"{layout}: {error}")
    raise ValueError(f"{earlier.path}: cannot be renamed; {'; '.join(refusals) or 'this net has no key maps'}")


def _config(path: Path) -> Record | None:
    file = path / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _scale_in(settings: Record) -> float | None:
    """alpha / r where the settings of a stage state both."""
    config = settings.get("config", settings)
    lora = config.get("stage", config)
    lora = lora.get("lora") if isinstance(lora, Mapping) else None
    return lora["alpha"] / lora["r"] if lora else None

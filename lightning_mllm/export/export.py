"""`mllm export RUN --to DIR`: a trained run as a folder of transformers, given out only if transformers agrees.

module --Format.write--> files in a folder beside DIR --> a fresh process loads them as anybody would, and compares
                                                          tokens, pixels, logits and greedy answers with ours
all equal: renamed to DIR                                 any difference: removed, and an error that names it
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lightning_mllm.contracts import IMAGE_MARK, Sample, Turn
from lightning_mllm.export.importing import ImportedPart
from lightning_mllm.inference import load_apart
from lightning_mllm.interop.format import HfFolder, TrainedNet, folder_format, folder_formats
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lora import fold_lora
from lightning_mllm.processing.image_in_memory import ImageInMemory
from lightning_mllm.training.module import MultimodalModule

QUESTIONS = ("What is in the picture?", "Is it red?", "Which of the squares in the picture is the largest one?")
CAPTIONS = ("a picture of squares", "squares", "squares, one behind the other")
"""Of unequal lengths: they are compared one by one and as a batch."""
NEW_TOKENS = 16
MINUTES = 30
"""A 13B model is read from disk and run in float32 on the CPU."""


def export_run(run: Path, to: Path) -> Path:
    """Writes a run, or one stage of a run, as a folder that transformers loads.

    Raises:
        ValueError: `to` is not empty, the run's architecture has no layout in transformers, or transformers does not
            answer as our net does; then nothing is left behind.
        OSError: The disk is full or the folder cannot be written.
    """
    refuse_full(to)
    return export_module(load_apart(run), to)


def export_module(module: MultimodalModule, to: Path) -> Path:
    """As `export_run`, for a built net, which is left in float32, its adapters folded into what they adapt.

    Warns of what users of the folder must do themselves (`HfFolder.advice`).
    """
    refuse_full(to)
    layout = hf_folder(module)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as beside:
        folder = Path(beside, to.name)
        layout.write(folder)
        case = Path(beside, "case")
        write_case(module, layout, case)
        verify(folder, case, layout.caveat)
        if to.is_dir():
            to.rmdir()
        shutil.move(folder, to)
    if layout.advice:
        warnings.warn(f"{to}: {layout.advice}", stacklevel=2)
    return to


def hf_folder(module: MultimodalModule) -> HfFolder:
    """A built net as a folder of transformers.

    Raises:
        ValueError: Its architecture has no layout in transformers, or the layout cannot hold the net.
    """
    form, parts = folder_format(type(module), module.processor), module.components.items()
    if form is None or form.write is None:
        known = ", ".join(sorted({each.architecture.rpartition(".")[2] for each in folder_formats().values()}))
        raise ValueError(f"{type(module).__name__}: has no layout in transformers, expected one of {known}")
    return form.write(
        TrainedNet(
            net=module.net,
            components={name: spec.spec if isinstance(spec, ImportedPart) else spec for name, spec in parts},
            processor=module.processor,
            decoding={task: asdict(how) for task, how in module.decoding.items()},
            lora_scale=None if module.lora is None else module.lora.scale,
        )
    )


def refuse_full(to: Path) -> None:
    """Raises ValueError if `to` exists and is anything but an empty folder."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to}: found files there, expected an empty or absent folder")


def write_case(module: MultimodalModule, layout: HfFolder, case: Path) -> None:
    """What our net does with some images and texts: files for `verify`, which compares transformers with them.

    The net is in float32 afterwards, and its adapters are folded into what they adapt and rounded as in the files; what
    it says before that is in the case too.
    """
    case.mkdir()
    module, rows = module.eval(), range(len(QUESTIONS))
    dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    module.float()
    apart = [_said(module, layout, _sample(module, layout, i), logits=True) for i in rows]
    if module.lora is not None:
        fold_lora(module, module.lora.scale, dtypes)
    processor, size = module.processor, module.processor.image.size
    tensors: dict[str, Tensor] = {}
    for i in rows:
        sample = _sample(module, layout, i)
        tensors |= {f"{i}.{name}": tensor for name, tensor in _said(module, layout, sample).items()}
        tensors[f"{i}.unmerged"] = apart[i]["logits"]
        tensors[f"{i}.square"] = _pixels(_square(size, i))
    wide = drawing(2 * size, size)
    tensors |= {"wide": _pixels(wide), "wide_pixels": processor.image(wide)[0]}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, case / "case.safetensors")
    facts = {
        "compared": layout.compared,
        "texts": CAPTIONS if layout.compared == "pairs" else QUESTIONS if layout.asks else [""] * len(rows),
        "new_tokens": NEW_TOKENS,
        "adapted": module.lora is not None,
        "code": [str(file) for file in layout.code],
    }
    (case / "case.json").write_text(json.dumps(facts), encoding="utf-8")


def _sample(module: MultimodalModule, layout: HfFolder, i: int) -> Sample:
    image = _square(module.processor.image.size, i)
    return pair(image, CAPTIONS[i]) if layout.compared == "pairs" else question(image, QUESTIONS[i])


def _square(size: int, i: int) -> Image.Image:
    """Of the tower's own size: no resizing filter is involved, whose rounding differs between backends."""
    return drawing(size, size).rotate(90 * i)


def _pixels(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


@torch.inference_mode()
def _said(module: MultimodalModule, layout: HfFolder, sample: Sample, logits: bool = False) -> dict[str, Tensor]:
    """What our net reads and says of one sample; with `logits`, only these."""
    processor, asked = module.processor, layout.compared == "answers"
    batch = processor.collate([processor.encode(sample, generate=asked)], padding="left")
    tensors: dict[str, Tensor] = {"tokens": batch.tokens[0], "kinds": batch.kinds[0]}
    if asked and not logits:
        tensors["answer"] = torch.tensor(module.generate(batch, Decoding(max_new_tokens=NEW_TOKENS))[0]).long()
    if asked and processor.seq2seq:
        batch = processor.with_answers(batch, [CAPTIONS[0]])
        assert batch.targets is not None
        tensors["targets"] = batch.targets[0]
    if batch.query_text is not None:
        tensors["query_text"] = batch.query_text[0]
    say: Any = module.net.logits if asked else module.net.pair_logits
    return {**tensors, "logits": say(batch)[0].float()}


def verify(folder: Path, case: Path, caveat: str = "") -> None:
    """Compares in a fresh process, which imports transformers and nothing of ours but the comparison.

    Args:
        caveat: What is added to a difference, where something is known that may explain it.

    Raises:
        ValueError: transformers cannot load the folder, or does something else with it than our net.
    """
    # Where transformers copies the code of a folder before it runs it; gone with the case.
    modules = str(case.parent / "modules")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "HF_MODULES_CACHE": modules}
    command = [sys.executable, "-m", "lightning_mllm.export.verify", str(folder), str(case)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    if ended.returncode:
        lines = (ended.stdout if ended.returncode == 1 and ended.stdout.strip() else ended.stderr).strip().splitlines()
        reason = lines[-1] if lines else f"the process ended with {ended.returncode}"
        raise ValueError(f"the export differs from the net, so it was removed: {reason}{caveat}")


def question(image: Image.Image, text: str = QUESTIONS[0]) -> Sample:
    """A question that is compared."""
    turn = Turn(role="user", text=f"{IMAGE_MARK}\n{text}")
    return Sample(id="export", turns=(turn,), images=(ImageInMemory(image),))


def drawing(width: int, height: int) -> Image.Image:
    """A picture with an edge, a slope and two colours; the same on every machine."""
    pixels = bytes(
        value
        for y in range(height)
        for x in range(width)
        for value in ((255 * x) // width, (255 * y) // height, 200 if (x // 8 + y // 8) % 2 else 40)
    )
    return Image.frombytes("RGB", (width, height), pixels)


def pair(image: Image.Image, text: str = CAPTIONS[0]) -> Sample:
    """An image and a text that are compared."""
    turns = (Turn(role="user", text=IMAGE_MARK), Turn(role="assistant", text=text))
    return Sample(id="export", turns=turns, images=(ImageInMemory(image),))

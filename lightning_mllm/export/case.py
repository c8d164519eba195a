"""What our net does with some pictures and texts: files which a fresh process compares a folder with.

Drawn squares with fixed questions, and pictures of the run's own test with the questions that were asked there.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import save_file
from torch import Tensor

from lightning_mllm.contracts import IMAGE_MARK, Sample, Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.lora import fold_lora
from lightning_mllm.processing.image_in_memory import ImageInMemory
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.weights.run_records import read_test

QUESTIONS = ("What is in the picture?", "Is it red?", "Which of the squares in the picture is the largest one?")
CAPTIONS = ("a picture of squares", "squares", "squares, one behind the other")
"""Of unequal lengths: they are compared one by one and as a batch."""
NEW_TOKENS = 16
PICTURES = 5
"""Of the run's test."""

Asked = tuple[Image.Image, str]
"""A picture and the question about it."""
Exact = list[Tensor]
"""Logits of each row."""


class Layout(Protocol):
    """What is asked of a folder that is to be compared; `HfFolder` says what each means."""

    @property
    def compared(self) -> Literal["answers", "pairs"]: ...
    @property
    def asks(self) -> bool: ...
    @property
    def code(self) -> tuple[Path, ...]: ...


def write_case(
    module: MultimodalModule,
    layout: Layout,
    case: Path,
    asked: Sequence[Asked] = (),
    exact: Exact | None = None,
    *,
    merged: bool = True,
) -> None:
    """What our net does with some images and texts: files for `verify`, which compares the folder with them.

    The net is in float32 afterwards, and its adapters are folded into what they adapt and rounded as in the files; what
    it says before that is in the case too.

    Args:
        module: A net as it is written.
        layout: The folder.
        case: Where to write; absent.
        asked: Pictures of the tower's own size and questions, besides the drawn ones.
        exact: `exact_logits` of the net before it was rounded; None takes those of the net given.
        merged: Whether the folder has adapters merged; else they stay apart here too.
    """
    case.mkdir()
    module = module.eval()
    dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    apart = exact_logits(module, layout, asked) if exact is None else exact
    module.float()
    if merged and module.lora is not None:
        fold_lora(module, module.lora.scale, dtypes)
    processor, size = module.processor, module.processor.image.size
    rows, tensors = _rows(module, layout, asked), {}
    for i, (image, text) in enumerate(rows):
        found = said(module, layout.compared, _sample(layout, image, text))
        tensors |= {f"{i}.{name}": tensor for name, tensor in found.items()}
        tensors[f"{i}.unmerged"] = apart[i]
        tensors[f"{i}.square"] = _pixels(image)
    wide = drawing(2 * size, size)
    tensors |= {"wide": _pixels(wide), "wide_pixels": processor.image(wide)[0]}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, case / "case.safetensors")
    facts = {
        "compared": layout.compared,
        "texts": [text if layout.asks or layout.compared == "pairs" else "" for _, text in rows],
        "new_tokens": NEW_TOKENS,
        "adapted": merged and module.lora is not None,
        "code": [str(file) for file in layout.code],
    }
    (case / "case.json").write_text(json.dumps(facts), encoding="utf-8")


def exact_logits(module: MultimodalModule, layout: Layout, asked: Sequence[Asked] = ()) -> Exact:
    """What the net says in float32 with its adapters apart; it is in float32 afterwards."""
    module.eval().float()
    rows = _rows(module, layout, asked)
    return [said(module, layout.compared, _sample(layout, *row), logits=True)["logits"] for row in rows]


def _rows(module: MultimodalModule, layout: Layout, asked: Sequence[Asked]) -> list[Asked]:
    """Drawn squares first; images and texts that are matched are drawn ones alone."""
    texts = CAPTIONS if layout.compared == "pairs" else QUESTIONS
    # Of the tower's own size: no resizing filter is involved, whose rounding differs between backends.
    size = module.processor.image.size
    drawn = [(drawing(size, size).rotate(90 * i), text) for i, text in enumerate(texts)]
    return drawn if layout.compared == "pairs" else [*drawn, *asked]


def tested(stage: Path) -> list[dict[str, Any]]:
    """The examples of a stage's test that show a picture and what was said of it, each set in turn; none without one.

    Each has `image` (PIL) beside what `test.json` says of it.
    """
    file = stage / "test.json"
    results: Mapping[str, Any] = read_test(file)
    sets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in results.get("examples", []):
        if not each.get("blind") and (image := _opened(each.get("picture") or "")) is not None:
            prompt = " ".join(str(each.get("prompt") or "").replace(IMAGE_MARK, " ").split())
            sets.setdefault((each["task"], each["part"]), []).append({**each, "image": image, "prompt": prompt})
    turns = max(map(len, sets.values()), default=0)
    return [examples[i] for i in range(turns) for examples in sets.values() if i < len(examples)]


def _opened(uri: str) -> Image.Image | None:
    """The picture of a `data:` URI."""
    try:
        content = base64.b64decode(uri.partition(",")[2], validate=True)
        return Image.open(io.BytesIO(content)).convert("RGB") if content else None
    except (binascii.Error, UnidentifiedImageError, OSError):
        return None


def fitted(
    module: MultimodalModule, examples: Sequence[Mapping[str, Any]], most: int = PICTURES, *, whole: bool = False
) -> list[Asked]:
    """Pictures as the tower is shown them, or `whole`, with questions that the net reads whole."""
    found: list[Asked] = []
    for each in examples:
        if len(found) == most:
            break
        if not each["prompt"]:
            continue
        try:
            module.processor.encode(question(each["image"], each["prompt"]), generate=True, may_cut=False)
        except ValueError:
            continue
        image = each["image"]
        if not whole:
            image = Image.fromarray(module.processor.image(image)[0].permute(1, 2, 0).numpy())
        found.append((image, each["prompt"]))
    return found


def _sample(layout: Layout, image: Image.Image, text: str) -> Sample:
    return pair(image, text) if layout.compared == "pairs" else question(image, text)


def _pixels(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


@torch.inference_mode()
def said(module: MultimodalModule, compared: str, sample: Sample, logits: bool = False) -> dict[str, Tensor]:
    """What our net reads and says of one sample; with `logits`, only these."""
    processor, asked = module.processor, compared == "answers"
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

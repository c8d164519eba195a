"""Features in place of pixels: rows, blank images, and what has no features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_mllm.architectures.sphinx import Sphinx
from lightning_mllm.contracts import ImageFile, Sample, Turn
from lightning_mllm.processing.cached_processor import CachedProcessor, FeatureError
from lightning_mllm.processing.images import ImageError, ImagePolicy


class Rows:
    """Two views of three numbers for each name that is known."""

    blank = torch.tensor([[9.0, 9.0, 9.0]])

    def __init__(self, *names: str) -> None:
        self.names = names

    def find(self, ref: Any, max_bytes: int) -> int | None:
        ref.read(max_bytes)
        return self.names.index(Path(ref.name).name) if Path(ref.name).name in self.names else None

    def size(self, row: int) -> tuple[int, int]:
        return 20, 10

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.full((5, 3), float(row))


@pytest.fixture
def processor() -> CachedProcessor:
    plain = Sphinx.tiny(image=ImagePolicy(size=16, fit="pad", views=5)).processor
    return CachedProcessor(plain, Rows("a.png", "b.png"))


def sample(*images: ImageFile) -> Sample:
    turns = (Turn(role="user", text="<image>\n" * len(images) + "What?"), Turn(role="assistant", text="Red."))
    return Sample(id="s", turns=turns, images=images)


def drawn(folder: Path, name: str, size: tuple[int, int] | None = None) -> ImageFile:
    Image.new("RGB", (20, 10), "red").save(folder / name)
    return ImageFile(folder / name, size)


def test_rows_in_place_of_pixels(processor: CachedProcessor, tmp_path: Path) -> None:
    two = processor.encode(sample(drawn(tmp_path, "b.png"), drawn(tmp_path, "a.png", (20, 10))))
    assert torch.equal(two.images, torch.tensor([1.0] * 5 + [0.0] * 5)[:, None].expand(10, 3))
    none = processor.encode(sample())
    batch = processor.collate([none, two])
    assert torch.equal(batch.images, two.images) and batch.num_images == 10
    assert batch.image_rows is not None and batch.image_rows.tolist() == [1] * 10
    alone = processor.collate([none])
    assert torch.equal(alone.images, Rows.blank) and alone.num_images == 0
    assert type(processor.encode(sample()).images) is torch.Tensor and none.images.shape == (0, 3)


def test_what_has_no_features(processor: CachedProcessor, tmp_path: Path) -> None:
    """A picture that cannot be used is so as ever; a new one is an error that replaces no sample."""
    with pytest.raises(FeatureError, match="found no features of this picture") as found:
        processor.encode(sample(drawn(tmp_path, "new.png")))
    assert found.value.filename == str(tmp_path / "new.png") and not isinstance(found.value, ValueError)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("broken.png", "absent.png"):
        with pytest.raises(ImageError, match=name):
            processor.encode(sample(ImageFile(tmp_path / name)))
    with pytest.raises(ImageError, match="found 20 x 10 pixels, expected 30 x 10 as the annotations say"):
        processor.encode(sample(drawn(tmp_path, "a.png", (30, 10))))


def test_a_processor_of_ones_own_is_refused(processor: CachedProcessor) -> None:
    with pytest.raises(ValueError, match="found the processor CachedProcessor, expected Processor"):
        CachedProcessor(processor, Rows())

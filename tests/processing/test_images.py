from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from lightning_mllm.processing import images
from lightning_mllm.processing.augmentation import random_part
from lightning_mllm.processing.images import ImagePolicy

SIZES = [(37, 64), (64, 37), (50, 50), (21, 90), (200, 31), (33, 32), (1, 9), (640, 427)]
UNSCALED: Any = {"do_rescale": False, "do_normalize": False}


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference(processor: object, image: Image.Image) -> torch.Tensor:
    pixels = processor(image, return_tensors="np")["pixel_values"]  # pyright: ignore[reportCallIssue]
    return torch.from_numpy(np.asarray(pixels).round().astype(np.uint8))


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize("size", SIZES)
def test_crop_is_clips(size: tuple[int, int], side: int) -> None:
    theirs = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **UNSCALED)
    assert torch.equal(ImagePolicy(size=side, fit="crop")(noise(*size)), reference(theirs, noise(*size)))


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize("size", SIZES)
def test_pad_is_llavas(size: tuple[int, int], side: int) -> None:
    theirs = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **UNSCALED
    )
    assert torch.equal(ImagePolicy(size=side, fit="pad")(noise(*size)), reference(theirs, noise(*size)))


@pytest.mark.parametrize("size", SIZES)
def test_squash_is_a_plain_resize(size: tuple[int, int]) -> None:
    theirs = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False, **UNSCALED)
    assert torch.equal(ImagePolicy(size=32, fit="squash")(noise(*size)), reference(theirs, noise(*size)))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_one_view_of_bytes(fit: images.Fit) -> None:
    policy = ImagePolicy(size=16, fit=fit)
    pixels = policy(noise(40, 20))
    assert pixels.shape == (policy.num_views, 3, 16, 16) and policy.num_views == 1
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
    # Both a shape and a channel mistake would show: red stays in the first channel.
    assert ImagePolicy(size=8, fit=fit)(Image.new("RGB", (9, 9), (255, 0, 7)))[0, :, 4, 4].tolist() == [255, 0, 7]


def test_padding_has_the_mean_colour() -> None:
    pixels = ImagePolicy(size=9, fit="pad", mean=(0.5, 0.25, 1.0))(Image.new("RGB", (9, 3)))
    assert pixels[0, :, 0, 0].tolist() == [127, 63, 255]


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(600, 90), (90, 600)])
def test_thin_images_are_cut_before_they_are_enlarged(
    fit: images.Fit, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    image = Image.fromarray(np.stack([x % 256, y % 256, (x + y) // 4], -1).astype(np.uint8))
    policy = ImagePolicy(size=64, fit=fit)
    whole = policy(image).int()
    monkeypatch.setattr(images, "MAX_INTERMEDIATE", 1000)
    cut = policy(image).int()
    # The same picture up to resampling: at the image's border only, where padding bleeds in.
    assert (whole - cut).abs().float().mean() < 3


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_the_thinnest_image_stays_cheap(fit: images.Fit) -> None:
    assert ImagePolicy(size=336, fit=fit)(Image.new("RGB", (1, 20_000), (9, 8, 7))).shape == (1, 3, 336, 336)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"image\.size: found 0, expected at least 1"):
        ImagePolicy(size=0, fit="crop")
    with pytest.raises(ValueError, match=r"image\.fit: found 'stretch', expected one of crop, pad, squash"):
        ImagePolicy(size=9, fit="stretch")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", SIZES)
def test_random_parts_are_torchvisions(size: tuple[int, int]) -> None:
    """Inside the image, of the area and shape asked for; of a thin one, the middle."""
    (width, height), random = size, torch.Generator().manual_seed(0)
    parts = {random_part(width, height, (0.5, 1.0), random) for _ in range(50)}
    for left, top, right, bottom in parts:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if max(size) > 2.7 * min(size):
        assert len(parts) == 1, "no part of half the area has a side of at most 4/3 of the other"
        ((left, top, right, bottom),) = parts
        assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
    elif min(size) > 20:
        areas = [(right - left) * (bottom - top) / (width * height) for left, top, right, bottom in parts]
        assert len(parts) > 20 and 0.45 < min(areas) < 0.6 and 0.7 < max(areas) <= 1
        assert all(0.7 < (right - left) / (bottom - top) < 1.4 for left, top, right, bottom in parts)


def test_what_is_random_is_drawn_in_training_alone() -> None:
    plain = ImagePolicy(size=32, fit="squash")
    policy = ImagePolicy(size=32, fit="squash", random_area=(0.5, 1.0), random_flip=0.5)
    mirror = ImagePolicy(size=32, fit="squash", random_flip=1.0)
    image = noise(50, 50)
    assert torch.equal(policy(image), plain(image))
    first, again, other = (policy(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(mirror(image, torch.Generator()), plain(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image.random_area: found \(0.9, 0.5\), expected two rising shares"):
        ImagePolicy(size=9, fit="crop", random_area=(0.9, 0.5))
    with pytest.raises(ValueError, match=r"image.random_flip: found 2, expected a share"):
        ImagePolicy(size=9, fit="crop", random_flip=2)

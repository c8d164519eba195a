"""An image in several views."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lightning_mllm.processing import images
from lightning_mllm.processing.images import ImagePolicy
from tests.processing.test_images import noise


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize(("views", "k"), [(5, 2), (10, 3)])
@pytest.mark.parametrize("size", [(37, 64), (90, 21), (50, 50)])
def test_parts_are_crops_of_the_large_square_row_by_row(
    size: tuple[int, int], views: int, k: int, fit: images.Fit
) -> None:
    found = ImagePolicy(size=16, fit=fit, views=views)(noise(*size))
    large = ImagePolicy(size=16 * k, fit=fit)(noise(*size))[0]
    assert found.shape == (views, 3, 16, 16) and found.dtype == torch.uint8 and found.is_contiguous()
    tiles = [large[:, y : y + 16, x : x + 16] for y in range(0, 16 * k, 16) for x in range(0, 16 * k, 16)]
    for tile, view in zip(tiles, found[1:], strict=True):
        assert torch.equal(view, tile)


@pytest.mark.parametrize("views", [5, 10])
def test_the_first_view_is_the_whole_as_the_released_code_has_it(views: int) -> None:
    """It interpolates normalised pixels, which is the same up to the rounding to bytes."""
    policy = ImagePolicy(size=16, fit="pad", views=views)
    found = policy(noise(40, 64))[:1].float()
    large = ImagePolicy(size=16 * policy.grid, fit="pad")(noise(40, 64)).float()
    mean, std = torch.rand(3, 1, 1) * 255, torch.rand(3, 1, 1) * 99 + 1
    released = F.interpolate((large - mean) / std, size=(16, 16), mode="bicubic") * std + mean
    assert (found - released.clamp(0, 255)).abs().max() < 0.51
    flat = policy(Image.new("RGB", (30, 30), (255, 0, 7)))
    assert all(view.flatten(1).float().mean(1).tolist() == [255, 0, 7] for view in flat)


def test_padding_is_part_of_the_square_that_is_cut() -> None:
    """SPHINX's `padded_resize`, then its views: bars of the mean colour above and below a wide image."""
    views = ImagePolicy(size=8, fit="pad", views=5, mean=(0.5, 0.25, 1.0))(Image.new("RGB", (64, 16)))
    assert views[0, :, 0, 4].tolist() == views[1, :, 0, 4].tolist() == views[4, :, 7, 4].tolist() == [127, 63, 255]
    assert views[1, :, 7, 4].tolist() == views[3, :, 0, 4].tolist() == [0, 0, 0]


def test_one_view_is_what_it_was() -> None:
    policy = ImagePolicy(size=16, fit="crop")
    assert policy.num_views == 1 and policy(noise(40, 20)).shape == (1, 3, 16, 16)
    assert [ImagePolicy(size=16, fit="crop", views=views).num_views for views in (5, 10, 17)] == [5, 10, 17]


@pytest.mark.parametrize("views", [0, 2, 4, 9, -3])
def test_other_numbers_are_refused(views: int) -> None:
    with pytest.raises(ValueError, match=rf"image\.views: found {views}, expected 1, or 1 \+ k x k"):
        ImagePolicy(size=16, fit="crop", views=views)

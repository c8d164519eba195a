from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lightning_mllm.component import ComponentSpec
from lightning_mllm.connectors.mixed import MixedConnector, pooled
from lightning_mllm.contracts import TokenKind
from lightning_mllm.processing.marks import mark_row

SPHINX = (32, 257)
"""Vectors of the Q-Former and of the other three towers."""


def test_published_sizes() -> None:
    with torch.device("meta"):
        module = MixedConnector(in_widths=(768, 1024 + 3072 + 1536), out_width=5120).build()
    counts = [sum(p.numel() for p in project.parameters()) for project in module.projections]
    assert counts == [3_947_520, 28_851_200]


def test_a_linear_layer_and_a_norm_for_each_group() -> None:
    spec = MixedConnector(in_widths=(3, 5), out_width=4)
    assert isinstance(spec, ComponentSpec) and spec.pretrained() is None
    module = spec.build()
    assert spec.blocks(module) == []
    assert [n for n, _ in module.named_parameters()] == [
        f"projections.{g}.{name}.{kind}" for g in (0, 1) for name in ("linear", "norm") for kind in ("weight", "bias")
    ]
    visual = torch.randn(2, 6, 3), torch.randn(2, 7, 5, dtype=torch.float64)
    out = module(visual)
    assert out.shape == (2, 13, 4)
    weight, bias = (module.get_parameter(f"projections.1.linear.{kind}") for kind in ("weight", "bias"))
    assert_close(out[:, 6:], F.layer_norm(visual[1].float() @ weight.T + bias, (4,)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("views", "pool", "tokens"),
    [(1, (), 291), (5, (), 1455), (10, (), 2910), (5, (1, 2), 291 + 4 * 99)],
    ids=["llama_ens", "llama_ens5", "llama_ens10", "llama_ens5p2"],
)
def test_tokens_of_the_released_models(views: int, pool: tuple[int, ...], tokens: int) -> None:
    """With the learned begin and end of every view."""
    vectors = MixedConnector(pool=pool).vectors(SPHINX, views)
    assert len(vectors) == views and sum(vectors) + 2 * views == tokens
    row, _, kinds = mark_row("<image>", "vectors", vectors, {}, 0)
    assert len(row) == tokens and kinds.count(TokenKind.IMAGE_BEGIN) == kinds.count(TokenKind.IMAGE_END) == views
    module = MixedConnector(in_widths=(2, 3), out_width=4, pool=pool).build()
    visual = tuple(torch.randn(2 * views, count, width) for count, width in zip(SPHINX, (2, 3), strict=True))
    out = module.by_image(visual, views)
    assert out.shape == (2, tokens - 2 * views, 4)


def test_views_of_an_image_follow_one_another() -> None:
    views, vectors = 5, (3, 17)
    module = MixedConnector(in_widths=(2, 3), out_width=4, pool=(1, 2)).build()
    visual = tuple(torch.randn(2 * views, count, width) for count, width in zip(vectors, (2, 3), strict=True))
    out = module.by_image(visual, views)
    assert out.shape == (2, 3 + 17 + 4 * (3 + 5), 4)
    for image in range(2):
        first = module(tuple(each[image * views, None] for each in visual))[0]
        assert_close(out[image, : len(first)], first)
        for part in range(1, views):
            row = image * views + part
            expected = module((visual[0][row, None], pooled(visual[1][row, None], 2)))[0]
            start = len(first) + (part - 1) * len(expected)
            assert_close(out[image, start : start + len(expected)], expected)
    # Without pooling: the views one after another, in the order in which they come.
    plain = replace(MixedConnector(in_widths=(2, 3), out_width=4)).build()
    assert_close(plain.by_image(visual, views).flatten(0, 1), plain(visual).flatten(0, 1))


def test_a_blank_image_has_one_view_and_reaches_every_parameter() -> None:
    module = MixedConnector(in_widths=(2, 3), out_width=4, pool=(1, 2)).build()
    out = module.by_image((torch.randn(1, 3, 2), torch.randn(1, 17, 3)), 5)
    out[:0].sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_pooled_as_the_released_code_interpolates() -> None:
    visual = torch.randn(2, 17, 6)
    patches = visual[:, 1:].view(-1, 4, 4, 6).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, scale_factor=1 / 2, mode="bilinear").flatten(-2).permute(0, 2, 1)
    assert_close(pooled(visual, 2), torch.cat([visual[:, :1], patches], dim=1), atol=1e-6, rtol=0)
    assert pooled(visual, 1) is visual


def test_pools_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"connector\.pool: found 2 for the 32 vectors of group 0, expected a divisor"):
        MixedConnector(pool=(2, 2)).vectors(SPHINX, 5)
    with pytest.raises(ValueError, match=r"connector\.pool: found 3 for the 257 vectors of group 1"):
        MixedConnector(pool=(1, 3)).vectors(SPHINX, 5)
    with pytest.raises(ValueError, match=r"connector\.pool: found 1 numbers, expected 2, one for each group"):
        MixedConnector(pool=(2,)).vectors(SPHINX, 5)

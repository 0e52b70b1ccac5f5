"""Heat-maps and Attention-in-Box: cells, upsampling and measures by hand, and against torch's own definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from data.box import Box, Frame
from data.sample import EncodedImage
from rl.analysis.grid import ImageGrid, merged_grid, overview_grid
from rl.analysis.heatmap import (
    COLORS,
    EXTREMES,
    MAX_OPACITY,
    Extremes,
    Outline,
    colorize,
    common,
    normalize,
    overlay,
    upsample,
)
from rl.analysis.in_box import attention_in_box


def image(width: int, height: int) -> EncodedImage:
    return EncodedImage(width, height, path="unused.png")


def box(*corners: float, size: tuple[int, int] = (100, 80)) -> Box:
    return Box(*corners, Frame.original(*size))


def test_the_grid_of_merged_patches() -> None:
    """640 × 480 becomes 644 × 476: 46 × 34 patches, 23 × 17 tokens, and they cover the original image."""
    assert merged_grid(image(640, 480), torch.tensor([1, 34, 46]), 2) == ImageGrid(17, 23, (0.0, 0.0, 640.0, 480.0))


def test_cells_in_a_box_share_area_with_it() -> None:
    """4 × 5 cells of 20 × 20 pixels over 100 × 80; edges that only touch do not count."""
    grid = ImageGrid(4, 5, (0.0, 0.0, 100.0, 80.0))
    one = grid.inside((box(20, 20, 40, 40),))
    assert one.nonzero().tolist() == [[1, 1]]
    straddling = grid.inside((box(39, 10, 41, 21),))
    assert straddling.nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    both = grid.inside((box(20, 20, 40, 40), box(0, 79, 1, 80)))
    assert both.nonzero().tolist() == [[1, 1], [3, 0]]


def test_a_padded_overview_covers_a_square_around_the_image() -> None:
    """100 × 80 is padded by 10 rows above and below: of 5 rows of 20 pixels the first and last are half padding."""

    class Vision:
        image_size, patch_size = 70, 14

    grid = overview_grid(image(100, 80), Vision(), alone=False)
    assert grid == ImageGrid(5, 5, (0.0, -10.0, 100.0, 90.0))
    assert grid.inside((box(0, 0, 20, 10),)).nonzero().tolist() == [[0, 0]]
    assert grid.inside((box(0, 0, 20, 11),)).nonzero().tolist() == [[0, 0], [1, 0]]
    assert overview_grid(image(100, 80), Vision(), alone=True).region == (0.0, 0.0, 100.0, 80.0)
    rows = torch.arange(25) // 5
    heat = upsample(rows.float(), grid, 100, 80)
    assert heat.shape == (80, 100)
    assert heat[0, 0] == pytest.approx(0.025)  # half a pixel under the centre of row 0, at −10 + 10: 0.5 / 20
    assert heat[-1, 0] == pytest.approx(3.975)


def test_bilinear_upsampling_of_two_by_two_by_hand() -> None:
    """Cell centres lie at 1 and 3 on 4 pixels, pixel centres at .5, 1.5, 2.5, 3.5: weights 0, ¼, ¾, 1 of the second cell."""
    heat = upsample(torch.tensor([0.0, 1.0, 2.0, 4.0]), ImageGrid(2, 2, (0.0, 0.0, 4.0, 4.0)), 4, 4)
    weights = torch.tensor([0.0, 0.25, 0.75, 1.0])
    top, bottom = weights, 2 + 2 * weights
    expected = torch.stack([top, top * 0.75 + bottom * 0.25, top * 0.25 + bottom * 0.75, bottom])
    assert torch.allclose(heat, expected)


def test_upsampling_agrees_with_pillow() -> None:
    values = torch.rand(3 * 4, generator=torch.Generator().manual_seed(0))
    heat = upsample(values, ImageGrid(3, 4, (0.0, 0.0, 112.0, 84.0)), 112, 84)
    cells = Image.fromarray(values.reshape(3, 4).numpy())
    pillow = np.asarray(cells.resize((112, 84), Image.Resampling.BILINEAR))
    assert np.abs(heat.numpy() - pillow).max() < 1e-5


def test_normalization_by_peak_by_range_and_shared() -> None:
    heat, other = torch.tensor([[0.2, 0.4]]), torch.tensor([[0.1, 0.8]])
    assert normalize(heat, EXTREMES["peak"](heat)).tolist() == [pytest.approx([0.5, 1.0])]
    assert normalize(heat, EXTREMES["minmax"](heat)).tolist() == [pytest.approx([0.0, 1.0])]
    shared = common([EXTREMES["minmax"](heat), EXTREMES["minmax"](other)])
    assert (shared.low, shared.high) == pytest.approx((0.1, 0.8))
    assert normalize(heat, shared).tolist() == [pytest.approx([1 / 7, 3 / 7])]
    assert normalize(heat, Extremes(0.0, 0.3)).tolist() == [pytest.approx([2 / 3, 1.0])]
    flat = torch.full((1, 2), 0.3)
    assert normalize(flat, EXTREMES["minmax"](flat)).tolist() == [[0.0, 0.0]]


def test_the_overlay_shows_the_image_where_nothing_is_and_colour_where_it_peaks() -> None:
    grey = Image.new("RGB", (6, 4), (100, 100, 100))
    heat = torch.zeros(4, 6)
    heat[3, 5] = 1.0
    drawn = overlay(grey, heat, [Outline((0.0, 0.0, 3.0, 2.0), "#35c46a"), Outline((-9.0, -9.0, -1.0, -1.0), "#ffffff")])
    assert drawn.size == (6, 4)
    assert drawn.getpixel((4, 1)) == (100, 100, 100)
    peak = COLORS[-1] * MAX_OPACITY + 100 * (1 - MAX_OPACITY)
    assert drawn.getpixel((5, 3)) == tuple(int(value) for value in peak.round())
    outline = {(x, y) for x in range(6) for y in range(4) if drawn.getpixel((x, y)) == (0x35, 0xC4, 0x6A)}
    assert outline == {(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)}  # pixels 0…2 × 0…1 of the half-open box


def test_colours_grow_lighter_evenly() -> None:
    colors = colorize(np.linspace(0, 1, 101, dtype=np.float32))
    assert colors.shape == (101, 3)
    luminance = colors @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()
    assert np.allclose(colors[50], COLORS[4])


def test_attention_in_box_by_hand() -> None:
    """Layer 0: (1+2)/10, its peak 4 outside. Layer 1: (6+1)/10, its peak 6 inside. Mean map: (3.5+1.5)/10, peak inside."""
    attention = torch.tensor([[1.0, 2.0, 3.0, 4.0], [6.0, 1.0, 1.0, 2.0]]) / 100
    inside = torch.tensor([[True, True], [False, False]])
    found = attention_in_box(attention, inside)
    assert found.aib_M.tolist() == pytest.approx([0.3, 0.7])
    assert found.pib_M.tolist() == [0.0, 1.0]
    assert (found.aib, found.pib, found.uniform) == pytest.approx((0.5, 1.0, 0.5))

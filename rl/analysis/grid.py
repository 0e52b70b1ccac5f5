"""Which part of an image every one of its tokens stands for: a grid of cells over the image, for each family.

smart_resize   image_grid_thw of the processor, merged: every token is a cell, and the cells cover the image exactly
tiles          the family's overview, image_size / patch cells a side, comes first; tiles and line ends after it are not
               drawn. It shows the whole image stretched, or, in a prompt of several images, padded to a square
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.box import Box
from data.sample import EncodedImage


@dataclass(frozen=True)
class ImageGrid:
    """`rows` × `columns` cells, in raster order, over the rectangle (x1, y1, x2, y2) in original pixels of the image.

    The rectangle is larger than the image where the processor pads it.
    """

    rows: int
    columns: int
    region: tuple[float, float, float, float]

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    def inside(self, boxes: tuple[Box, ...]) -> Tensor:
        """Bool [rows, columns]: the cells that share area with any of the boxes, which are in original pixels."""
        x1, y1, x2, y2 = self.region
        left = x1 + torch.arange(self.columns, dtype=torch.float64) * (x2 - x1) / self.columns
        top = y1 + torch.arange(self.rows, dtype=torch.float64) * (y2 - y1) / self.rows
        right, bottom = left + (x2 - x1) / self.columns, top + (y2 - y1) / self.rows
        found = torch.zeros(self.rows, self.columns, dtype=torch.bool)
        for box in boxes:
            across, down = (left < box.x2) & (right > box.x1), (top < box.y2) & (bottom > box.y1)
            found |= down[:, None] & across[None]
        return found


def merged_grid(image: EncodedImage, grid_thw: Tensor, merge: int) -> ImageGrid:
    """The cells of an image that was resized as a whole: patches of `grid_thw`, `merge` × `merge` of them a token."""
    _, patches_down, patches_across = grid_thw.tolist()
    return ImageGrid(patches_down // merge, patches_across // merge, (0.0, 0.0, float(image.width), float(image.height)))


def overview_grid(image: EncodedImage, vision_config: Any, alone: bool) -> ImageGrid:
    """The overview of a family that cuts tiles; `alone`: the prompt's only image, which is stretched instead of padded."""
    side = vision_config.image_size // vision_config.patch_size
    if alone:
        return ImageGrid(side, side, (0.0, 0.0, float(image.width), float(image.height)))
    longest = max(image.width, image.height)
    left, top = -((longest - image.width) // 2), -((longest - image.height) // 2)
    return ImageGrid(side, side, (float(left), float(top), float(left + longest), float(top + longest)))

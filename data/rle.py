"""Boxes of COCO run-length masks, as text: checked first, because pycocotools reads whatever text it is given.

A mask is the lengths of its runs, column by column, of pixels outside and inside in turn; each length but the first three
is written as the difference to the one before the last, in groups of five bits, one character a group (48 to 111).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data.track import Corners

# Seven groups hold 32 bits and their sign.
_MOST_GROUPS = 7
_ZERO = ord("0")


def mask_corners(counts: str, width: int, height: int) -> Corners | None:
    """The corners (half-open) of the smallest box around the mask, None for a mask without pixels.

    Raises ValueError, saying why, for a text that is no mask of width × height pixels.
    """
    runs = run_lengths(counts)
    if runs.min() < 0 or (runs[1:] == 0).any():
        raise ValueError("a run of the mask has no pixels")
    if runs.sum() != width * height:
        raise ValueError(f"the mask has {runs.sum():,} pixels, the image {width}×{height} = {width * height:,}")
    if len(runs) == 1:
        return None
    x, y, box_width, box_height = coco_mask.toBbox({"size": [height, width], "counts": counts.encode()}).tolist()
    return (x, y, x + box_width, y + box_height)


def run_lengths(counts: str) -> NDArray[np.int64]:
    """The lengths that the text encodes. Raises ValueError where it is cut off or holds other characters."""
    codes = np.frombuffer(counts.encode(errors="replace"), dtype=np.uint8).astype(np.int64) - _ZERO
    if not len(codes) or codes.min() < 0 or codes.max() > 63:
        raise ValueError(f"not the text of a mask: {counts[:20]!r}")
    # Bit 5 says that the number goes on; bit 4 of its last group that it is negative.
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError(f"the text of the mask is cut off inside a number: …{counts[-20:]!r}")
    starts = np.concatenate([[0], ends[:-1] + 1])
    groups = ends - starts + 1
    if groups.max() > _MOST_GROUPS:
        raise ValueError("a run of the mask has more than 32 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, groups))
    runs: NDArray[np.int64] = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << 5 * groups, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs

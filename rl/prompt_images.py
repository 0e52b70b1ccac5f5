"""How many tokens each image of a prompt is, without touching a pixel; by the family's way of cutting images.

smart_resize    every image by itself: its resized area over the area of a token
tiles           a prompt's only image: an overview and tiles of detail; of several images each is an overview alone
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data.families import SizeRule

Size = tuple[int, int]  # height, width


def _each_alone(processor: Any, sizes: Sequence[Size]) -> list[int]:
    counts: list[int] = processor._get_num_multimodal_tokens(image_sizes=list(sizes))["num_image_tokens"]
    return counts


def _tiles(processor: Any, sizes: Sequence[Size]) -> list[int]:
    if len(sizes) == 1:
        return _each_alone(processor, sizes)
    # One more token ends an image's only row of tiles; "default" leaves out the tower's class token.
    overview = processor.num_image_tokens + 1 - (processor.vision_feature_select_strategy == "default")
    return [overview] * len(sizes)


IMAGE_TOKENS: dict[SizeRule, Callable[[Any, Sequence[Size]], list[int]]] = {"smart_resize": _each_alone, "tiles": _tiles}

"""The fast way through Qwen's image processor makes what the processor makes, to the last bit, whatever its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaOnevisionImageProcessor, Qwen2VLImageProcessor

from rl.prompt_pixels import processor_vision, qwen_vision, vision_way

UNIT = 28 * 28
LIMITS = {"shortest_edge": 4 * UNIT, "longest_edge": 60 * UNIT}
QWEN3 = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
# Enlarged, left as it is, shrunk, and as long as the rule lets an image be; together more rows than are computed at once.
SIZES = [(20, 33), (112, 84), (640, 480), (900, 7)]
# transformers computes images of one size together, and puts them back in their order.
SAME_SIZES = [(640, 480), (112, 84), (640, 480), (640, 480), (112, 84)]


def images(sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    rng = np.random.default_rng(4)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@pytest.mark.parametrize("settings", [{}, QWEN3, {"merge_size": 1, "temporal_patch_size": 1}, {"rescale_factor": 1 / 127.5}])
def test_every_bit_is_the_processors(settings: Mapping[str, Any]) -> None:
    processor = Qwen2VLImageProcessor(size=dict(LIMITS), **settings)
    assert vision_way(processor) is qwen_vision
    for shown in (images(SIZES), images(SAME_SIZES), *([image] for image in images(SIZES))):
        fast, whole = qwen_vision(processor, shown), processor_vision(processor, shown)
        assert fast.keys() == whole.keys()
        assert all(torch.equal(fast[name], whole[name]) and fast[name].dtype == whole[name].dtype for name in fast)


@pytest.mark.parametrize(
    "processor",
    [Qwen2VLImageProcessor(do_normalize=False), Qwen2VLImageProcessor(do_resize=False), LlavaOnevisionImageProcessor()],
)
def test_other_processors_go_their_own_way(processor: Any) -> None:
    assert vision_way(processor) is processor_vision

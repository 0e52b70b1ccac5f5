"""Model families: the size arithmetic against the installed transformers processors, and the frame of an answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as transformers_smart_resize

from data.box import Frame
from data.families import FAMILIES, ModelFamily, PixelLimits, family_for
from data.sample import EncodedImage

RESIZING = [family for family in FAMILIES.values() if family.size_rule == "smart_resize"]
# The families' own limits, and those of the published training recipe (EasyR1).
LIMITS = [None, PixelLimits(262_144, 4_194_304), PixelLimits(3136, 28 * 28 * 16)]


@given(
    family=st.sampled_from(RESIZING),
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    limits=st.sampled_from(LIMITS),
)
def test_resized_size_is_the_processors(family: ModelFamily, width: int, height: int, limits: PixelLimits | None) -> None:
    limits = limits or family.limits
    try:
        expected = transformers_smart_resize(height, width, family.unit, limits.min_pixels, limits.max_pixels)
    except ValueError:
        with pytest.raises(ValueError, match="aspect ratio"):
            family.resized_size(width, height, limits.min_pixels, limits.max_pixels)
        return
    assert family.resized_size(width, height, limits.min_pixels, limits.max_pixels) == expected[::-1]


@pytest.mark.parametrize("family", RESIZING, ids=lambda family: family.name)
@pytest.mark.parametrize("size", [(640, 480), (16, 16), (13, 300), (1000, 6), (1023, 767)])
def test_the_real_processor_makes_the_grid_that_resized_size_says(family: ModelFamily, size: tuple[int, int]) -> None:
    """Through the image processor itself: grid × patch is the resized size."""
    width, height = size
    processor = Qwen2VLImageProcessor(
        min_pixels=family.limits.min_pixels,
        max_pixels=family.limits.max_pixels,
        patch_size=family.patch,
        merge_size=family.merge,
    )
    image = np.zeros((height, width, 3), dtype=np.uint8)
    grid = processor(images=[torch.from_numpy(image).permute(2, 0, 1)], return_tensors="pt")["image_grid_thw"][0].tolist()
    expected = family.resized_size(width, height, family.limits.min_pixels, family.limits.max_pixels)
    assert (grid[2] * family.patch, grid[1] * family.patch) == expected


def test_the_example_everyone_quotes() -> None:
    limits = FAMILIES["qwen2_5_vl"].limits
    assert FAMILIES["qwen2_5_vl"].resized_size(640, 480, limits.min_pixels, limits.max_pixels) == (644, 476)


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (4020, 20), (20, 4001)])
def test_what_the_processor_refuses_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        FAMILIES["qwen2_vl"].resized_size(*size, 3136, 10**7)


def test_answer_frames() -> None:
    image = EncodedImage(640, 480, path="a.jpg")
    frames = {key: family.answer_frame(image) for key, family in FAMILIES.items()}
    assert frames["qwen2_5_vl"] == frames["mimo_vl"] == Frame.resized(644, 476)
    assert frames["qwen2_vl"] == frames["qwen3_vl"] == frames["llava_onevision"] == Frame.thousandths()
    # A run's own limits move the frame: with at least 262,144 pixels a 320×240 image grows.
    small = EncodedImage(320, 240, path="a.jpg")
    assert FAMILIES["qwen2_5_vl"].answer_frame(small, PixelLimits(262_144, 4_194_304)) == Frame.resized(616, 448)


def test_a_family_is_found_by_key_name_and_model_type() -> None:
    assert family_for("qwen3_vl_moe") is FAMILIES["qwen3_vl"]
    assert family_for("Qwen2.5-VL") is family_for("qwen2_5_vl") is FAMILIES["qwen2_5_vl"]
    assert family_for("mimo_vl") is FAMILIES["mimo_vl"]
    with pytest.raises(ValueError, match=r"'gpt'.*known are.*qwen2_vl"):
        family_for("gpt")


def test_tiles_have_no_single_size() -> None:
    with pytest.raises(ValueError, match="tiles"):
        FAMILIES["llava_onevision"].resized_size(640, 480, 1, 10**6)


@pytest.mark.parametrize("limits", [(0, 10), (10, 9), (-5, 10)])
def test_impossible_limits_are_refused(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="min_pixels"):
        PixelLimits(*limits)

"""A prompt's images as the arguments of a forward: by their image processor, or faster and the same where it is Qwen's.

Qwen's cuts an image into patches, the four of a token together, and shows a still image in every frame of a patch:

    [3, H, W] uint8 ─► [rows/2, columns/2, 2, 2, 3, 14, 14] ─► (x − mean) / std ─► pixel_values [patches, 3 × frames × 14²]

transformers computes in floats first and then moves them, several times; here bytes are moved, and floats are written where
they stay. It is the same arithmetic on every number, so that not a bit differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor  # type: ignore[import-untyped]
from transformers import Qwen2VLImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

# Rows of tokens that are computed together: what they take stays in a core's cache.
_ROWS = 4

VisionOf = Callable[[Any, Sequence[Image]], dict[str, Tensor]]


def vision_way(image_processor: Any) -> VisionOf:
    """How the images of this processor are turned into `EncodedPrompt.vision`."""
    is_qwens = type(image_processor) is Qwen2VLImageProcessor
    whole = is_qwens and image_processor.do_resize and image_processor.do_rescale and image_processor.do_normalize
    return qwen_vision if whole else processor_vision


def processor_vision(image_processor: Any, images: Sequence[Image]) -> dict[str, Tensor]:
    """As the image processor makes them, of any family."""
    # A list in a list: these are the images of one prompt, which for tiles makes a difference.
    inputs = image_processor([list(images)], return_tensors="pt")
    vision = {name: inputs[name] for name in image_processor.model_input_names if name in inputs}
    return vision | {"pixel_values": vision["pixel_values"].to(torch.float32)}


def qwen_vision(image_processor: Any, images: Sequence[Image]) -> dict[str, Tensor]:
    """As `processor_vision` for a `Qwen2VLImageProcessor` that resizes, rescales and normalises."""
    patch, frames = image_processor.patch_size, image_processor.temporal_patch_size
    resized = [_resized(image_processor, image) for image in images]
    grids = torch.tensor([[1, pixels.shape[1] // patch, pixels.shape[2] // patch] for pixels in resized])
    counts: list[int] = grids.prod(-1).tolist()
    pixel_values = torch.empty(sum(counts), 3 * frames * patch**2)
    for pixels, patches in zip(resized, pixel_values.split(counts), strict=True):
        _write_patches(image_processor, pixels, patches)
    return {"pixel_values": pixel_values, "image_grid_thw": grids}


def _resized(image_processor: Any, image: Image) -> Tensor:
    """uint8 [3, H, W]."""
    height, width = smart_resize(
        image.height,
        image.width,
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )
    size = SizeDict(height=height, width=width)
    resized: Tensor = image_processor.resize(pil_to_tensor(image)[None], size, image_processor.resample)
    return resized[0]


def _write_patches(image_processor: Any, pixels: Tensor, patches: Tensor) -> None:
    """Normalised `pixels` into `patches`, a view."""
    patch, merge = image_processor.patch_size, image_processor.merge_size
    rows, columns = (side // (patch * merge) for side in pixels.shape[1:])
    cut = pixels.reshape(3, rows, merge, patch, columns, merge, patch).permute(1, 4, 2, 5, 0, 3, 6)
    out = patches.view(rows, columns, merge, merge, 3, image_processor.temporal_patch_size, patch, patch)
    # One step, as transformers fuses x · factor and (x − mean) / std.
    mean, std = (
        (torch.tensor(values) * (1.0 / image_processor.rescale_factor))[:, None, None]
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    for first in range(0, rows, _ROWS):
        normalised = cut[first : first + _ROWS].contiguous().float().sub_(mean).div_(std)
        out[first : first + _ROWS] = normalised[:, :, :, :, :, None]

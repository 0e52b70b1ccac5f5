"""Cuts the cues of one scene: opens the image once, crops, scales and encodes every cue, and makes the samples.

This is what the worker processes of the LOCUS builder run. The cue is exactly the region that is the answer, padding
included: regions are whole pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image as PILImage

from data.box import Box
from data.config import CueFormat, SceneStorage
from data.image_file import ImageFileError, ImageProblem, load_image
from data.png import encode_png
from data.prompts import locus_prompt
from data.sample import EncodedImage, Sample
from data.store import samples_to_table


@dataclass(frozen=True, slots=True)
class CuePlan:
    """One cue to cut. `region` and `distractors` are in original pixels; `size` is the cue's after scaling."""

    row: int
    sample_id: str
    region: tuple[int, int, int, int]
    size: tuple[int, int]
    distractors: tuple[tuple[float, float, float, float], ...]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """One scene to open, the size its annotations were made for, and the cues to cut from it."""

    image_row: int
    file_name: str
    width: int
    height: int
    cues: tuple[CuePlan, ...]


@dataclass(frozen=True, slots=True)
class CutSettings:
    """What is the same for every scene of a build."""

    images: Path
    cue_format: CueFormat
    jpeg_quality: int
    scene_storage: SceneStorage


@dataclass(frozen=True, slots=True)
class CutScenes:
    """Samples as rows of data.store.SCHEMA, in the order of the plans, and what was wrong with each scene, if anything."""

    rows: pa.Table
    problems: tuple[ImageProblem | None, ...]


def cut_scenes(settings: CutSettings, scenes: Sequence[ScenePlan]) -> CutScenes:
    samples: list[Sample] = []
    problems: list[ImageProblem | None] = []
    for scene in scenes:
        cut = cut_scene(settings, scene)
        if isinstance(cut, str):
            problems.append(cut)
        else:
            problems.append(None)
            samples += cut
    return CutScenes(samples_to_table(samples), tuple(problems))


def cut_scene(settings: CutSettings, scene: ScenePlan) -> list[Sample] | ImageProblem:
    """The samples of one scene, or what is wrong with its image."""
    try:
        content, image = load_image(settings.images / scene.file_name, (scene.width, scene.height))
    except ImageFileError as error:
        return error.problem
    if settings.scene_storage == "bytes":
        stored = EncodedImage(scene.width, scene.height, encoded=content)
    else:
        stored = EncodedImage(scene.width, scene.height, path=scene.file_name)
    return [_cut(settings, image, stored, cue) for cue in scene.cues]


def _cut(settings: CutSettings, image: PILImage.Image, stored: EncodedImage, cue: CuePlan) -> Sample:
    crop = image.crop(cue.region).convert("RGB")
    if crop.size != cue.size:
        crop = crop.resize(cue.size, PILImage.Resampling.BICUBIC)
    x1, y1, x2, y2 = cue.region
    return Sample(
        id=cue.sample_id,
        source="locus",
        images=(stored, EncodedImage(*cue.size, encoded=_encode(settings, crop))),
        prompt=locus_prompt(),
        target=Box(x1, y1, x2, y2, stored.frame),
        distractors=tuple(Box(*corners, stored.frame) for corners in cue.distractors),
        metadata=cue.metadata,
    )


def _encode(settings: CutSettings, crop: PILImage.Image) -> bytes:
    if settings.cue_format == "png":
        return encode_png(crop)
    encoded = io.BytesIO()
    crop.save(encoded, "JPEG", quality=settings.jpeg_quality)
    return encoded.getvalue()

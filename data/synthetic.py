"""Synthetic scenes in COCO's own on-disk format: painted objects on real photographs, with same-class distractors.

    python -m data.synthetic --out DIR --images 2000 --seed 0 --split train

    DIR/annotations/instances_train.json       DIR/train/000000000001.jpg …

An image shows objects of few classes (its category is the shape), so that each has distractors of its own class, which
differ in colour and, if asked, in pattern. A plain COCO reader sees nothing unusual; what tells two objects of a class apart
is in the extra annotation key "attributes": {"color": "red", "pattern": "striped", "place": "top left"}, in the order in
which one says it ("a red striped top left star"); an object without a pattern has no such word.

Image i depends on (seed, split, i) alone: same seed, same bytes, whatever the number of workers.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from data.box import Box, Frame
from data.photos import Split, load_photographs
from data.shapes import COLORS, PATTERNS, PLAIN, SHAPES, PaintedObject, outline, paint, polygon_area

# Image ids of the two splits do not meet, as COCO's do not: an id is enough to exclude an image.
_FIRST_IMAGE_ID: dict[Split, int] = {"train": 1, "val": 500_000_001}
_PLACING_ATTEMPTS = 50


@dataclass(frozen=True)
class SceneSpec:
    """What scenes look like. Areas are of the object's box, as a share of the image's."""

    width: int = 112
    height: int = 112
    objects: tuple[int, int] = (2, 3)
    area: tuple[float, float] = (0.04, 0.20)
    aspect: tuple[float, float] = (0.8, 1.25)
    classes: int = 1
    shapes: tuple[str, ...] = SHAPES
    colors: tuple[str, ...] = tuple(COLORS)
    patterns: tuple[str, ...] = PATTERNS
    # Least distance between two boxes, and between a box and the border.
    gap: int = 2
    # Corners lie on multiples of this many pixels: a coarse grid makes a task that a tiny model learns sooner.
    grid: int = 1
    # Largest margin between an annotated box and its object, a share of the side, drawn for every side: as boxes that
    # people draw, and so that a cue shows some of what surrounds its object.
    margin: float = 0.0
    jpeg_quality: int = 92
    # What is behind the objects: a window of a photograph, or one grey that differs from scene to scene.
    background: Literal["photograph", "plain"] = "photograph"

    def __post_init__(self) -> None:
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"objects needs 1 ≤ least ≤ most, got {self.objects}")
        if not 0 < self.area[0] <= self.area[1] <= 0.5:
            raise ValueError(f"area needs 0 < least ≤ most ≤ 0.5 of the image, got {self.area}")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"margin needs 0 ≤ share of the side < 0.5, got {self.margin}")
        for name, chosen, known in (
            ("shape", self.shapes, SHAPES),
            ("color", self.colors, tuple(COLORS)),
            ("pattern", self.patterns, PATTERNS),
        ):
            unknown = sorted(set(chosen).difference(known))
            if unknown or not chosen:
                raise ValueError(f"unknown {name} {unknown}; choose from {', '.join(known)}")


def scene_rng(seed: int, split: Split, index: int) -> np.random.Generator:
    """The random stream of one image."""
    return np.random.default_rng([seed, _FIRST_IMAGE_ID[split], index])


def background(spec: SceneSpec, photographs: tuple[Image.Image, ...], rng: np.random.Generator) -> Image.Image:
    """A random window of a random photograph, perhaps mirrored, at the scene's size; or a random grey."""
    if spec.background == "plain":
        return Image.new("RGB", (spec.width, spec.height), (int(rng.integers(40, 216)),) * 3)
    photograph = photographs[rng.integers(len(photographs))]
    largest = min(photograph.width / spec.width, photograph.height / spec.height)
    scale = largest * rng.uniform(0.4, 1.0)
    width, height = scale * spec.width, scale * spec.height
    left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
    window = photograph.resize(
        (spec.width, spec.height), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height), reducing_gap=2.0
    )
    return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else window


def _place(spec: SceneSpec, placed: list[Box], rng: np.random.Generator) -> Box | None:
    """A random free box on the grid, or None when the scene is too full."""
    frame = Frame.original(spec.width, spec.height)
    for attempt in range(2 * _PLACING_ATTEMPTS):
        # Where no object of random size found room, a small one may.
        share = rng.uniform(*spec.area) if attempt < _PLACING_ATTEMPTS else spec.area[0]
        area = share * spec.width * spec.height
        aspect = math.exp(rng.uniform(math.log(spec.aspect[0]), math.log(spec.aspect[1])))
        width, height = _snap(math.sqrt(area * aspect), spec.grid), _snap(math.sqrt(area / aspect), spec.grid)
        xs = range(_up(spec.gap, spec.grid), spec.width - spec.gap - width + 1, spec.grid)
        ys = range(_up(spec.gap, spec.grid), spec.height - spec.gap - height + 1, spec.grid)
        if width < 2 or height < 2 or not xs or not ys:
            continue
        box = Box.from_xywh(xs[rng.integers(len(xs))], ys[rng.integers(len(ys))], width, height, frame)
        if not any(_near(box, other, spec.gap) for other in placed):
            return box
    return None


def _snap(length: float, grid: int) -> int:
    """The nearest multiple of the grid."""
    return round(length / grid) * grid


def _up(length: int, grid: int) -> int:
    """The next multiple of the grid."""
    return math.ceil(length / grid) * grid


def _near(a: Box, b: Box, gap: int) -> bool:
    return a.x1 < b.x2 + gap and b.x1 < a.x2 + gap and a.y1 < b.y2 + gap and b.y1 < a.y2 + gap


def choose_objects(spec: SceneSpec, rng: np.random.Generator) -> list[PaintedObject]:
    """Objects of `classes` shapes in turn; within a shape no (color, pattern) comes twice, colours first."""
    shapes = rng.permutation(spec.shapes)[: spec.classes]
    looks = {str(shape): _looks(spec, rng) for shape in shapes}
    chosen: list[PaintedObject] = []
    for number in range(int(rng.integers(spec.objects[0], spec.objects[1] + 1))):
        box = _place(spec, [known.box for known in chosen], rng)
        shape = str(shapes[number % len(shapes)])
        if box is None or not looks[shape]:
            break
        color, pattern = looks[shape].pop(0)
        chosen.append(PaintedObject(shape, color, pattern, box, _inside(box, spec.margin, rng)))
    return chosen


def place_objects(spec: SceneSpec, objects: list[PaintedObject], rng: np.random.Generator) -> list[PaintedObject]:
    """The same objects elsewhere. Raises ValueError when they do not fit: fewer or smaller objects, or a larger image."""
    for _ in range(_PLACING_ATTEMPTS):
        boxes: list[Box] = []
        for _ in objects:
            box = _place(spec, boxes, rng)
            if box is None:
                break
            boxes.append(box)
        else:
            return [
                replace(known, box=box, drawn=_inside(box, spec.margin, rng))
                for known, box in zip(objects, boxes, strict=True)
            ]
    raise ValueError(f"{len(objects)} objects of {spec.area[0]:.0%} to {spec.area[1]:.0%} of the image do not fit into it")


def _inside(box: Box, margin: float, rng: np.random.Generator) -> Box:
    """The box without a random margin on every side."""
    left, top, right, bottom = rng.uniform(0, margin, size=4)
    width, height = box.x2 - box.x1, box.y2 - box.y1
    return Box(box.x1 + left * width, box.y1 + top * height, box.x2 - right * width, box.y2 - bottom * height, box.frame)


def _looks(spec: SceneSpec, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Every (color, pattern) once, in rounds that each go through all colours before a colour repeats."""
    pattern_orders = {color: rng.permutation(spec.patterns) for color in spec.colors}
    rounds = [rng.permutation(spec.colors) for _ in spec.patterns]
    return [(str(color), str(pattern_orders[str(color)][turn])) for turn, order in enumerate(rounds) for color in order]


def render_scene(spec: SceneSpec, seed: int, split: Split, index: int) -> tuple[Image.Image, list[PaintedObject]]:
    """Image `index` of the data set and what it shows."""
    rng = scene_rng(seed, split, index)
    scene = np.array(background(spec, load_photographs(split), rng), dtype=np.float32)
    objects = choose_objects(spec, rng)
    for painted in objects:
        paint(scene, painted, rng)
    return Image.fromarray(np.clip(scene, 0, 255).round().astype(np.uint8)), objects


def _write_image(index: int, *, spec: SceneSpec, seed: int, split: Split, folder: Path) -> list[PaintedObject]:
    image, objects = render_scene(spec, seed, split, index)
    image.save(folder / _file_name(split, index), quality=spec.jpeg_quality, subsampling=0)
    return objects


def _file_name(split: Split, index: int) -> str:
    return f"{_FIRST_IMAGE_ID[split] + index:012d}.jpg"


def _annotation(painted: PaintedObject, annotation_id: int, image_id: int) -> dict[str, Any]:
    box = painted.box
    polygon = outline(painted.shape, painted.drawn)
    pattern = {"pattern": painted.pattern} if painted.pattern != PLAIN else {}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1 + SHAPES.index(painted.shape),
        "bbox": [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1],
        "area": round(polygon_area(polygon), 2),
        "iscrowd": 0,
        "segmentation": [[round(float(value), 2) for value in polygon.ravel()]],
        "attributes": {"color": painted.color} | pattern | {"place": place(painted.box)},
    }


def place(box: Box) -> str:
    """Where the middle of the box lies, in words of a 3 × 3 grid: "top left" … "middle center" … "bottom right"."""
    x, y = box.center
    row, column = int(3 * y / box.frame.height), int(3 * x / box.frame.width)
    return f"{('top', 'middle', 'bottom')[row]} {('left', 'center', 'right')[column]}"


def _render_all(
    spec: SceneSpec, seed: int, split: Split, folder: Path, images: int, workers: int
) -> Iterator[list[PaintedObject]]:
    write_image = partial(_write_image, spec=spec, seed=seed, split=split, folder=folder)
    if workers == 1:
        yield from map(write_image, range(images))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(write_image, range(images), chunksize=16)


def write_coco(
    out: Path, images: int, seed: int, split: Split = "train", spec: SceneSpec | None = None, workers: int = 1
) -> Path:
    """Write a data set under `out`; returns the annotation file. Boxes are [x, y, width, height] in pixels, as COCO's."""
    spec = spec or SceneSpec()
    folder, annotation_file = out / split, out / "annotations" / f"instances_{split}.json"
    folder.mkdir(parents=True, exist_ok=True)
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    image_records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, objects in enumerate(_render_all(spec, seed, split, folder, images, workers)):
        image_id = _FIRST_IMAGE_ID[split] + index
        size = {"width": spec.width, "height": spec.height}
        image_records.append({"id": image_id, "file_name": _file_name(split, index), **size, "license": 1})
        annotations += [_annotation(painted, len(annotations) + 1 + n, image_id) for n, painted in enumerate(objects)]
    content = {
        "info": {"description": f"Sightline synthetic scenes, {split}, seed {seed}", "version": "1.0"},
        "licenses": [{"id": 1, "name": "generated; backgrounds from scikit-image and scikit-learn", "url": ""}],
        "images": image_records,
        "annotations": annotations,
        "categories": [{"id": 1 + n, "name": shape, "supercategory": "shape"} for n, shape in enumerate(SHAPES)],
    }
    annotation_file.write_text(json.dumps(content))
    return annotation_file


def main() -> None:
    parser = argparse.ArgumentParser(description="write synthetic scenes in COCO's on-disk format")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=get_args(Split), default="train", help="also decides which photographs are used")
    parser.add_argument("--size", type=int, nargs=2, default=(112, 112), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--objects", type=int, nargs=2, default=(2, 3), metavar=("LEAST", "MOST"), help="objects an image")
    parser.add_argument(
        "--area", type=float, nargs=2, default=(0.04, 0.20), metavar=("LEAST", "MOST"), help="share of the image"
    )
    parser.add_argument("--classes", type=int, default=1, help="shapes that one image shows")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    spec = replace(
        SceneSpec(),
        width=arguments.size[0],
        height=arguments.size[1],
        objects=tuple(arguments.objects),
        area=tuple(arguments.area),
        classes=arguments.classes,
    )
    written = write_coco(arguments.out, arguments.images, arguments.seed, arguments.split, spec, arguments.workers)
    print(written)


if __name__ == "__main__":
    main()

"""Synthetic scenes: COCO's layout on disk, tight boxes, honest distractors, the same bytes for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.box import Box, Frame
from data.photos import PHOTOGRAPHS, load_photographs
from data.shapes import COLORS, SHAPES, PaintedObject, outline, paint, polygon_area
from data.synthetic import SceneSpec, place, render_scene, write_coco


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coco")
    write_coco(out, images=12, seed=3, split="train")
    return out


def _instances(out: Path, split: str = "train") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
    return content


def test_the_layout_is_coco_s(written: Path) -> None:
    content = _instances(written)
    assert {"info", "licenses", "images", "annotations", "categories"} <= content.keys()
    assert len(content["images"]) == 12
    categories = {category["id"]: category["name"] for category in content["categories"]}
    assert set(categories.values()) == set(SHAPES)
    images = {image["id"]: image for image in content["images"]}
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= image["width"] and 0 <= y < y + height <= image["height"]
        assert 0 < annotation["area"] <= width * height + 0.01
        assert annotation["iscrowd"] == 0 and annotation["category_id"] in categories
        xs, ys = annotation["segmentation"][0][::2], annotation["segmentation"][0][1::2]
        assert (min(xs), min(ys), max(xs), max(ys)) == pytest.approx((x, y, x + width, y + height), abs=0.01)


def test_files_have_the_size_that_the_json_says(written: Path) -> None:
    for record in _instances(written)["images"]:
        with Image.open(written / "train" / record["file_name"]) as image:
            assert image.format == "JPEG" and image.size == (record["width"], record["height"])


def test_every_object_has_distractors_of_its_class_in_other_colors(written: Path) -> None:
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in _instances(written)["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    assert len(by_image) == 12
    for shown in by_image.values():
        assert len(shown) >= 2
        assert len({annotation["category_id"] for annotation in shown}) == 1
        colors = [annotation["attributes"]["color"] for annotation in shown]
        assert len(set(colors)) == len(colors)


@pytest.mark.parametrize(
    ("corners", "words"),
    [((0, 0, 30, 30), "top left"), ((30, 30, 60, 60), "middle center"), ((70, 61, 88, 89), "bottom right")],
)
def test_place_is_said_in_thirds(corners: tuple[float, float, float, float], words: str) -> None:
    assert place(Box(*corners, Frame.original(90, 90))) == words


def test_attributes_name_what_can_be_seen() -> None:
    spec = SceneSpec(patterns=("plain", "striped"))
    image, objects = render_scene(spec, seed=0, split="train", index=0)
    for painted in objects:
        x, y = painted.box.center
        pixel = np.asarray(image, dtype=np.float64)[int(y), int(x)]
        distances = {color: np.linalg.norm(pixel / pixel.max() - np.array(rgb) / max(rgb)) for color, rgb in COLORS.items()}
        assert min(distances, key=lambda color: distances[color]) == painted.color


def test_boxes_of_a_scene_keep_their_distance() -> None:
    spec = SceneSpec(objects=(4, 4), area=(0.02, 0.05), gap=3)
    for index in range(20):
        _, objects = render_scene(spec, seed=1, split="train", index=index)
        for n, first in enumerate(objects):
            assert min(first.box.x1, first.box.y1) >= 3
            for second in objects[n + 1 :]:
                a, b = first.box, second.box
                horizontal, vertical = max(a.x1, b.x1) - min(a.x2, b.x2), max(a.y1, b.y1) - min(a.y2, b.y2)
                assert max(horizontal, vertical) >= 3


def test_corners_lie_on_the_grid() -> None:
    spec = SceneSpec(grid=14, gap=0)
    for index in range(10):
        for painted in render_scene(spec, seed=0, split="val", index=index)[1]:
            assert all(corner % 14 == 0 for corner in painted.box.corners)


def test_a_margin_lies_between_the_annotated_box_and_the_object() -> None:
    for index in range(10):
        for painted in render_scene(SceneSpec(grid=14, gap=0, margin=0.1), seed=0, split="train", index=index)[1]:
            outer, inner = painted.box, painted.drawn
            assert all(corner % 14 == 0 for corner in outer.corners)
            assert 0 < inner.x1 - outer.x1 <= 0.1 * (outer.x2 - outer.x1)
            assert 0 < outer.y2 - inner.y2 <= 0.1 * (outer.y2 - outer.y1)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_seed_same_bytes_whatever_the_workers(written: Path, tmp_path: Path, workers: int) -> None:
    write_coco(tmp_path, images=12, seed=3, split="train", workers=workers)
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (tmp_path / file).read_bytes() == (written / file).read_bytes(), file


def test_another_seed_is_another_scene() -> None:
    first, _ = render_scene(SceneSpec(), seed=0, split="train", index=0)
    second, _ = render_scene(SceneSpec(), seed=1, split="train", index=0)
    assert first.tobytes() != second.tobytes()


def test_a_scene_does_not_depend_on_how_many_are_written(written: Path, tmp_path: Path) -> None:
    write_coco(tmp_path, images=2, seed=3, split="train")
    for name in ("000000000001.jpg", "000000000002.jpg"):
        assert (tmp_path / "train" / name).read_bytes() == (written / "train" / name).read_bytes()


def test_splits_share_neither_photographs_nor_image_ids(written: Path, tmp_path: Path) -> None:
    names = {split: {name for _, name in photographs} for split, photographs in PHOTOGRAPHS.items()}
    assert not names["train"] & names["val"]
    write_coco(tmp_path, images=3, seed=3, split="val")
    train = {image["id"] for image in _instances(written)["images"]}
    assert not train & {image["id"] for image in _instances(tmp_path, "val")["images"]}


def test_photographs_are_real_pictures() -> None:
    for split in PHOTOGRAPHS:
        for photograph in load_photographs(split):
            assert min(photograph.size) >= 300
            assert np.asarray(photograph).std() > 10


@pytest.mark.parametrize("shape", SHAPES)
def test_paint_fills_the_box_tightly_and_leaves_the_rest(shape: str) -> None:
    scene = np.full((60, 60, 3), 128, dtype=np.float32)
    box = Box(10, 20, 40, 50, Frame.original(60, 60))
    paint(scene, PaintedObject(shape, "red", "plain", box, drawn=box), np.random.default_rng(0))
    changed = np.abs(scene - 128).max(axis=2) > 20
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    # A pointed tip covers less than half a pixel: one pixel of slack.
    assert columns[0] in (10, 11) and columns[-1] in (38, 39)
    assert rows[0] in (20, 21) and rows[-1] in (48, 49)
    assert changed.sum() == pytest.approx(polygon_area(outline(shape, box)), rel=0.15)


def test_polygon_area_of_a_triangle() -> None:
    assert polygon_area(np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])) == 6.0


def test_a_disc_covers_pi_over_four_of_its_box() -> None:
    box = Box(0, 0, 10, 10, Frame.original(20, 20))
    assert polygon_area(outline("disc", box)) == pytest.approx(np.pi / 4 * 100, rel=0.01)


def test_crowded_scenes_stop_at_what_fits() -> None:
    spec = SceneSpec(objects=(50, 50), area=(0.1, 0.1))
    _, objects = render_scene(spec, seed=0, split="train", index=0)
    assert 2 <= len(objects) <= 9


def test_many_looks_before_a_repeat() -> None:
    spec = SceneSpec(width=640, height=480, objects=(30, 30), area=(0.001, 0.004))
    _, objects = render_scene(spec, seed=0, split="train", index=0)
    looks = [(painted.color, painted.pattern) for painted in objects]
    assert len(looks) == 30 and len(set(looks)) == 30
    assert {color for color, _ in looks[: len(COLORS)]} == set(COLORS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objects": (0, 2)}, "objects needs"),
        ({"area": (0.2, 0.1)}, "area needs"),
        ({"colors": ("mauve",)}, "unknown color.*mauve.*red"),
        ({"margin": 0.5}, "margin needs"),
        ({"shapes": ("blob",)}, "unknown shape"),
    ],
)
def test_impossible_scenes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneSpec(**wrong)

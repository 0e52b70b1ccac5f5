"""Damaged COCO folders: the builder stops with a ValueError or makes samples that an independent reading confirms.

Never an exception from the depths, never a silently wrong box. Three kinds of damage: bytes of the JSON, values in it,
and bytes of the images.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.box import Box
from data.build_report import BuildReport
from data.config import LocusConfig, SizeBin
from data.locus import build_locus
from data.sample import Sample
from data.store import SampleStore
from tests.data.coco_files import CocoFolder

KNOBS = LocusConfig(
    train_samples=12,
    validation_samples=2,
    bins={"any": SizeBin(0, 1)},
    mix={"any": 1.0},
    min_crop=4,
    augmented_bins=(),
)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Most damage to JSON only breaks it; another digit changes what it says.
DIGITS = b"0123456789"

positions = st.floats(0, 1, exclude_max=True)
edits = st.tuples(positions, st.sampled_from(["flip", "delete", "insert", "cut"]), st.integers(0, 255))
digit_edits = st.tuples(positions, st.just("digit"), st.sampled_from(DIGITS))
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-5, 300)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(
        ["1.png", "2.jpg", "../images/1.png", "\x00", "a" * 300, ".", "/", "\ud800", 10**400, [], {}, [1, 2, 3, 4]]
    )
)


def small_folder(root: Path) -> CocoFolder:
    folder = CocoFolder(root)
    for image_id in (1, 2, 3):
        folder.add_image(image_id, 60, 40)
        folder.add_box(image_id, [5, 6, 20, 15.5])
        folder.add_box(image_id, [30, 20, 21.25, 17], category=2, attributes={"color": "red"})
    Image.open(folder.images / "2.png").save(folder.images / "2.jpg", quality=95)
    folder.image_records[1]["file_name"] = "2.jpg"
    folder.write()
    return folder


def damage(content: bytes, changes: list[tuple[float, str, int]]) -> bytes:
    damaged = bytearray(content)
    for position, kind, byte in changes:
        at = int(position * len(damaged))
        if kind == "flip" and damaged:
            damaged[at] = byte
        elif kind == "delete":
            del damaged[at : at + 1 + byte // 64]
        elif kind == "insert":
            damaged[at:at] = bytes([byte])
        elif kind == "digit":
            digits = [place for place, value in enumerate(damaged) if value in DIGITS]
            damaged[digits[int(position * len(digits))]] = byte
        elif kind == "cut" and byte < 64:
            del damaged[at:]
    return bytes(damaged)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in children for found in [(*path, key), *places(child, (*path, key))]]


def build_and_check(folder: CocoFolder) -> None:
    with TemporaryDirectory() as out:
        try:
            report = build_locus(folder.annotations, folder.images, Path(out) / "set", KNOBS)
        except ValueError:
            event("refused")
            assert list(Path(out).iterdir()) == []
            return
        event("built")
        samples = [*SampleStore(Path(out) / "set"), *stored(Path(out) / "set", "validation")]
        check_report(report, samples)
        content = json.loads(folder.annotations.read_text())
        for sample in samples:
            check_sample(sample, content)


def stored(directory: Path, split: str) -> list[Sample]:
    return list(SampleStore(directory, split))


def check_report(report: BuildReport, samples: list[Sample]) -> None:
    assert report.kept == len(samples) > 0
    assert report.kept + report.unused + sum(report.dropped.values()) == report.records


def check_sample(sample: Sample, content: dict[str, Any]) -> None:
    """Against the file as json.loads reads it and the image as Pillow opens it."""
    records = with_id(content["annotations"], sample.metadata["annotation_id"])
    images = with_id(content["images"], sample.metadata["image_id"])
    assert len(images) == 1
    assert any(record.get("image_id") == images[0]["id"] and is_box(sample.target, record.get("bbox")) for record in records)
    scene, cue = (image.open() for image in sample.images)
    assert (images[0]["width"], images[0]["height"]) == scene.size == (60, 40)
    np.testing.assert_array_equal(np.asarray(cue), np.asarray(scene.crop(sample.target.rounded())))


def with_id(records: list[Any], wanted: int) -> list[dict[str, Any]]:
    """The records of that id. `true` is none, though Python holds it equal to 1."""
    rows = [record for record in records if isinstance(record, dict)]
    return [row for row in rows if type(row.get("id")) is int and row["id"] == wanted]


def is_box(target: Box, written: Any) -> bool:
    """Whether a target is that (x, y, width, height), clipped to the image and rounded outwards by less than a pixel."""
    if not isinstance(written, list) or len(written) != 4 or not all(isinstance(value, int | float) for value in written):
        return False
    x, y, width, height = written
    begins = max(0, x) >= target.x1 > x - 1 and max(0, y) >= target.y1 > y - 1
    return begins and min(60, x + width) <= target.x2 < x + width + 1 and min(40, y + height) <= target.y2 < y + height + 1


@fuzz
@given(st.lists(edits, min_size=1, max_size=4) | st.lists(digit_edits, min_size=1, max_size=4))
def test_damaged_bytes_of_the_annotation_file(changes: list[tuple[float, str, int]]) -> None:
    with TemporaryDirectory() as root:
        folder = small_folder(Path(root))
        folder.annotations.write_bytes(damage(folder.annotations.read_bytes(), changes))
        build_and_check(folder)


@fuzz
@example([(0.0, None, "remove"), (0.125, True, "replace")])
@given(st.lists(st.tuples(positions, leaves, st.sampled_from(["replace", "remove", "repeat"])), min_size=1, max_size=4))
def test_damaged_values_in_the_annotation_file(changes: list[tuple[float, Any, str]]) -> None:
    with TemporaryDirectory() as root:
        folder = small_folder(Path(root))
        content = json.loads(folder.annotations.read_text())
        for position, value, kind in changes:
            paths = places(content)
            *path, last = paths[int(position * len(paths))]
            parent = content
            for key in path:
                parent = parent[key]
            if kind == "replace":
                parent[last] = value
            elif kind == "remove":
                del parent[last]
            elif isinstance(parent, list):
                parent.append(parent[last])
        folder.annotations.write_text(json.dumps(content))
        build_and_check(folder)


@fuzz
@given(st.sampled_from(["1.png", "2.jpg", "3.png"]), st.lists(edits, min_size=1, max_size=4))
def test_damaged_bytes_of_an_image(name: str, changes: list[tuple[float, str, int]]) -> None:
    with TemporaryDirectory() as root:
        folder = small_folder(Path(root))
        path = folder.images / name
        path.write_bytes(damage(path.read_bytes(), changes))
        build_and_check(folder)

"""The COCO reader: every way in which a record can be wrong has its name, and what is right is read exactly."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.coco import Instances, Verdict, read_instances
from tests.data.coco_files import CocoFolder


@pytest.fixture
def folder(tmp_path: Path) -> CocoFolder:
    folder = CocoFolder(tmp_path)
    folder.add_image(7)
    folder.add_image(9, 100, 80)
    return folder


def verdicts(instances: Instances) -> list[str]:
    return [Verdict(verdict).reason for verdict in instances.verdicts]


def test_boxes_are_read_as_corners_of_their_own_image(folder: CocoFolder) -> None:
    folder.add_box(9, [10.5, 20.25, 30, 40], category=2, attributes={"color": "red"})
    folder.add_box(7, [0, 0, 200, 150])
    instances = read_instances(folder.write())
    assert verdicts(instances) == ["ok", "ok"]
    assert instances.boxes.tolist() == [[10.5, 20.25, 40.5, 60.25], [0, 0, 200, 150]]
    assert instances.image_ids[instances.image_rows].tolist() == [9, 7]
    assert instances.image_sizes[instances.image_rows].tolist() == [[100, 80], [200, 150]]
    assert [instances.file_names[row] for row in instances.image_rows] == ["9.png", "7.png"]
    assert [instances.categories[category] for category in instances.category_ids] == ["dog", "cat"]
    assert instances.attributes == {0: {"color": "red"}}


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 10, 0, 20], "zero_area"),
        ([10, 10, 20, -3], "zero_area"),
        ([150, 10, 60, 20], "out_of_image"),
        ([-2, 10, 20, 20], "out_of_image"),
        ([300, 300, 20, 20], "out_of_image"),
        ([200.5, 10, 0.4, 20], "zero_area"),
        ([float("nan"), 10, 20, 20], "non_finite"),
        ([10, 10, float("inf"), 20], "non_finite"),
        ([10, 10, 10**400, 20], "non_finite"),
        ([1e308, 10, 1e308, 20], "out_of_image"),
        ([10, 10, 20], "malformed"),
        ([10, 10, 20, "20"], "malformed"),
        ([10, 10, 20, True], "malformed"),
        ("10 10 20 20", "malformed"),
        (None, "malformed"),
    ],
)
def test_a_bad_box_is_dropped_under_its_reason(folder: CocoFolder, box: Any, reason: str) -> None:
    folder.add_box(7, [10, 10, 20, 20])
    folder.add_box(7, [10, 10, 20, 20])["bbox"] = box
    assert verdicts(read_instances(folder.write())) == ["ok", reason]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iscrowd": 1}, "crowd"),
        ({"iscrowd": "yes"}, "malformed"),
        ({"image_id": 8}, "unknown_image"),
        ({"image_id": "7"}, "malformed"),
        ({"image_id": 2**70}, "malformed"),
        ({"category_id": 3}, "unknown_category"),
        ({"id": 1}, "duplicate_annotation_id"),
        ({"id": None}, "malformed"),
    ],
)
def test_a_bad_record_is_dropped_under_its_reason(folder: CocoFolder, change: dict[str, Any], reason: str) -> None:
    folder.add_box(7, [10, 10, 20, 20])
    folder.add_box(7, [30, 30, 20, 20]).update(change)
    assert verdicts(read_instances(folder.write())) == ["ok", reason]


@pytest.mark.parametrize("record", [3, None, "x", [], {}])
def test_a_record_of_another_kind_is_malformed(folder: CocoFolder, record: Any) -> None:
    folder.annotation_records.append(record)
    assert verdicts(read_instances(folder.write())) == ["malformed"]


def test_a_box_that_overshoots_by_rounding_is_clipped(folder: CocoFolder) -> None:
    folder.add_box(7, [-0.4, 100.3, 200.9, 50.2])
    instances = read_instances(folder.write())
    assert verdicts(instances) == ["ok"]
    assert instances.boxes[0].tolist() == pytest.approx([0, 100.3, 200, 150])


def test_an_image_id_with_two_records_is_nobodys(folder: CocoFolder) -> None:
    """The box might have been drawn on either file; both records go, and every box of theirs."""
    folder.add_box(7, [10, 10, 20, 20])
    folder.add_box(9, [10, 10, 20, 20])
    folder.image_records.append({"id": 7, "file_name": "other.png", "width": 50, "height": 50})
    instances = read_instances(folder.write())
    assert verdicts(instances) == ["duplicate_image_id", "ok"]
    assert instances.dropped_images == {"duplicate_image_id": 2}


def test_a_malformed_twin_claims_an_image_id_too(folder: CocoFolder) -> None:
    folder.add_box(7, [10, 10, 20, 20])
    folder.image_records.append({"id": 7, "file_name": "other.png", "width": None, "height": 50})
    instances = read_instances(folder.write())
    assert verdicts(instances) == ["duplicate_image_id"]
    assert instances.dropped_images == {"malformed_image": 1, "duplicate_image_id": 1}


def test_a_file_with_two_ids_keeps_the_first(folder: CocoFolder) -> None:
    folder.image_records.append({"id": 70, "file_name": "7.png", "width": 200, "height": 150})
    folder.add_box(70, [10, 10, 20, 20])
    folder.add_box(7, [10, 10, 20, 20])
    instances = read_instances(folder.write())
    assert verdicts(instances) == ["duplicate_file_name", "ok"]
    assert instances.dropped_images == {"duplicate_file_name": 1}


@pytest.mark.parametrize(
    "change",
    [{"width": 0}, {"height": "80"}, {"width": 2**40}, {"file_name": None}, {"id": 1.5}, {"file_name": "\ud800.png"}],
)
def test_a_malformed_image_record_is_counted_and_its_boxes_know_no_image(folder: CocoFolder, change: dict[str, Any]) -> None:
    folder.add_box(9, [10, 10, 20, 20])
    folder.image_records[1].update(change)
    instances = read_instances(folder.write())
    assert verdicts(instances) == ["unknown_image"]
    assert instances.dropped_images == {"malformed_image": 1}


def test_the_order_of_keys_and_of_records_is_free(folder: CocoFolder) -> None:
    for index in range(40):
        folder.add_box(7 if index % 3 else 9, [index % 20, 5, 30 + index % 7, 20], category=1 + index % 2)
    one = read_instances(folder.write())
    content = json.loads(folder.annotations.read_text())
    folder.annotations.write_text(json.dumps({key: content[key] for key in reversed(content)}, indent=2))
    other = read_instances(folder.annotations)
    np.testing.assert_array_equal(one.boxes, other.boxes)
    assert verdicts(one) == verdicts(other) == ["ok"] * 40
    random.Random(0).shuffle(content["images"])
    folder.annotations.write_text(json.dumps(content))
    shuffled = read_instances(folder.annotations)
    np.testing.assert_array_equal(one.image_ids[one.image_rows], shuffled.image_ids[shuffled.image_rows])


def test_a_file_that_is_not_there_or_has_no_images_is_named(folder: CocoFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json does not exist"):
        read_instances(tmp_path / "nowhere.json")
    folder.image_records = [{"id": "x"}]
    with pytest.raises(ValueError, match=r"not one usable image record \(1 malformed\)"):
        read_instances(folder.write())


def test_captions_are_not_instances(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": [], "annotations": [{"image_id": 1, "id": 1, "caption": "a cat"}]}))
    with pytest.raises(ValueError, match="'categories' is missing"):
        read_instances(path)

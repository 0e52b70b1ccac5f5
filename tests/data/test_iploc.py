"""IPLoc's published lists: the first record of its LaSOT list by hand, records that are no question, damaged lists."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.box import Box, Frame
from data.families import FAMILIES
from data.iploc import UnusableRecord, iploc_records, make_sample
from data.prompts import FOCUS_PROMPT, chat_messages, focus_prompt
from data.sample import Sample
from data.store import SampleStore
from data.store_writer import write_samples
from data.track import TrackError

PREFIX = "data/ICL_tracking/video/LASOT/"
NAMES = [f"airplane/airplane-1/img/{number:08d}.jpg" for number in (1, 1395, 2788)]
FRAME = Frame.original(640, 360)


def read_iploc(path: Path, images_root: Path) -> list[Sample | UnusableRecord]:
    """As the builder reads a list: the records here, the samples in its workers."""
    return [make_sample(record) for record in iploc_records(path, images_root)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / PREFIX / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (640, 360)).save(path)
    return tmp_path


def record() -> dict[str, Any]:
    """The first of test_LASOT_2_shot.json, as published."""
    return {
        "element": "airplane",
        "image_path": [PREFIX + name for name in NAMES],
        "bbox": ["[367, 101, 408, 117]", "[26, 128, 348, 221]", "[185, 150, 542, 260]"],
        "image_id": [0, 1, 2],
    }


def write(root: Path, *records: object) -> Path:
    path = root / "test_LASOT_2_shot.json"
    path.write_text(json.dumps(records))
    return path


def read_one(root: Path, changed: dict[str, Any]) -> Sample | UnusableRecord:
    (item,) = read_iploc(write(root, changed), root)
    return item


def test_a_published_record_is_supports_with_boxes_and_then_the_query(root: Path) -> None:
    sample = read_one(root, record())
    assert isinstance(sample, Sample)
    assert [image.path for image in sample.images] == [str(root / PREFIX / name) for name in NAMES]
    assert {(image.width, image.height) for image in sample.images} == {(640, 360)}
    assert sample.prompt == focus_prompt((Box(367, 101, 408, 117, FRAME), Box(26, 128, 348, 221, FRAME)))
    assert (sample.target, sample.target_image) == (Box(185, 150, 542, 260, FRAME), 2)
    assert (sample.id, sample.source) == ("test_LASOT_2_shot/0", "iploc")
    assert sample.metadata["category"] == "airplane" and sample.metadata["shots"] == 2


def test_the_category_is_not_in_the_prompt(root: Path) -> None:
    sample = read_one(root, record())
    assert isinstance(sample, Sample)
    shown = json.dumps(chat_messages(sample, FAMILIES["qwen2_vl"]), ensure_ascii=False)
    assert FOCUS_PROMPT[:60] in shown and "[573, 281, 638, 325]" in shown and "airplane" not in shown


@pytest.mark.parametrize("depth", ["", "data/ICL_tracking/video", "data/ICL_tracking/video/LASOT"])
def test_the_image_root_may_be_the_data_set_s_own_folder(root: Path, depth: str) -> None:
    (sample,) = read_iploc(write(root, record()), root / depth)
    assert isinstance(sample, Sample) and sample.images[2].path == str(root / PREFIX / NAMES[2])


def test_samples_can_be_written_and_read(root: Path) -> None:
    sample = read_one(root, record())
    assert isinstance(sample, Sample)
    write_samples(root / "set", {"validation": [sample]})
    (stored,) = SampleStore(root / "set", "validation")
    assert stored == sample and stored.images[0].open().size == (640, 360)


def test_a_support_without_a_box_is_left_out(root: Path) -> None:
    sample = read_one(root, record() | {"bbox": ["[0, 0, 0, 0]", "[26, 128, 348, 221]", "[185, 150, 542, 260]"]})
    assert isinstance(sample, Sample)
    assert [image.path for image in sample.images] == [str(root / PREFIX / name) for name in NAMES[1:]]
    assert sample.prompt == focus_prompt((Box(26, 128, 348, 221, FRAME),))
    assert (sample.metadata["dropped_supports"], sample.target_image) == ([0], 1)
    # It stays one of the list's 2-shot records.
    assert sample.metadata["shots"] == 2


@pytest.mark.parametrize("box", ["[1185, 150, 1542, 260]", "[367, 101, 1408, 117]"])
def test_a_support_that_lies_outside_of_its_image_is_left_out(root: Path, box: str) -> None:
    sample = read_one(root, record() | {"bbox": ["[367, 101, 408, 117]", box, "[185, 150, 542, 260]"]})
    assert isinstance(sample, Sample)
    assert sample.prompt == focus_prompt((Box(367, 101, 408, 117, FRAME),))
    assert sample.metadata["dropped_supports"] == [1]


def test_a_box_is_clipped_to_its_image(root: Path) -> None:
    # LaSOT's boxes count from 1: the published lists hold 721 for an image of 720 rows.
    sample = read_one(root, record() | {"bbox": ["[367, 101, 408, 117]", "[26, 128, 348, 221]", "[540, 300, 641, 361]"]})
    assert isinstance(sample, Sample) and sample.target == Box(540, 300, 640, 360, FRAME)


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        (["[367, 101, 408, 117]", "[26, 128, 348, 221]", "[0, 0, 0, 0]"], "the query has no box"),
        (["[1, 1, 1, 1]", "[0, 0, 0, 0]", "[185, 150, 542, 260]"], "no support has a box"),
        (["[367, 101, 408, 117]", "[26, 128, 348, 221]", "[1185, 150, 1542, 260]"], r"1185.* lies outside of its image"),
        (["[367, 101, 408, 117]", "[26, 128, 348, 221]", "[367, 101, 1408, 117]"], r"1408.* lies outside of its image"),
        (["[1185, 150, 1542, 260]", "[0, 0, 0, 0]", "[185, 150, 542, 260]"], "no support has a box"),
    ],
)
def test_records_that_are_no_question_keep_their_place_in_the_list(root: Path, boxes: list[str], reason: str) -> None:
    first, second = read_iploc(write(root, record() | {"bbox": boxes}, record()), root)
    assert isinstance(first, UnusableRecord) and first.index == 0
    assert re.search(reason, first.reason)
    assert isinstance(second, Sample) and second.id == "test_LASOT_2_shot/1"


def test_a_record_without_supports_is_no_question(root: Path) -> None:
    alone = record() | {"image_path": [PREFIX + NAMES[0]], "bbox": ["[367, 101, 408, 117]"]}
    assert read_one(root, alone) == UnusableRecord(0, "there is no support")


def changed(**values: object) -> dict[str, Any]:
    return record() | values


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in record().items() if name != key}


def boxes(query: object) -> dict[str, Any]:
    return changed(bbox=[*record()["bbox"][:2], query])


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (without("element"), "lacks the key 'element'"),
        (without("bbox"), "lacks the key 'bbox'"),
        (changed(element=""), "'element' must be a text"),
        (changed(bbox=record()["bbox"][:2]), "3 images, but 2 boxes"),
        (changed(bbox=[], image_path=[]), "0 images, but 0 boxes"),
        (changed(image_path=[1, 2, 3]), "image_path must hold texts"),
        (boxes("[185, 150, 542]"), r"four numbers, got \[185, 150, 542\]"),
        (boxes("[185, 150, NaN, 260]"), "must be finite"),
        (boxes("[185, 150, 1e999, 260]"), "must be finite"),
        (boxes("[185, 150, 542, 260"), r"must be a text such as .*, got '\[185, 150, 542, 260'"),
        (boxes("185, 150, 542, 260"), "must be a text such as"),
        (boxes('["185", 150, 542, 260]'), "four numbers"),
        (boxes([185, 150, 542, 260]), "must be a text such as"),
        (boxes("[542, 150, 185, 260]"), "no box of corners"),
        (["airplane"], "must be an object"),
    ],
)
def test_a_damaged_record_is_refused_by_its_number(root: Path, damaged: object, message: str) -> None:
    with pytest.raises(TrackError, match=rf"test_LASOT_2_shot\.json: record 1.*{message}"):
        read_iploc(write(root, record(), damaged), root)


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, r"record 0: the image is missing; looked for .*00002788\.jpg"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), r"record 0: .*00002788\.jpg"),
    ],
    ids=["missing", "cut off"],
)
def test_a_damaged_image_is_refused_with_its_record(root: Path, damage: Damage, message: str) -> None:
    damage(root / PREFIX / NAMES[2])
    with pytest.raises(TrackError, match=message):
        read_one(root, record())


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps([record()])[:-20]])
def test_a_file_that_is_no_list_is_refused(root: Path, content: str) -> None:
    path = root / "list.json"
    path.write_text(content)
    with pytest.raises(TrackError, match=r"list\.json: (broken JSON|expected an array of records)"):
        read_iploc(path, root)


def test_missing_places_are_named(root: Path) -> None:
    with pytest.raises(TrackError, match=r"none\.json cannot be read"):
        read_iploc(root / "none.json", root)
    with pytest.raises(TrackError, match=r"image folder .*nowhere does not exist"):
        read_iploc(write(root, record()), root / "nowhere")

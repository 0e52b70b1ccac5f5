"""PerMIRS out of BURST: target and siblings by hand, masks against pycocotools' own decoding, traps, damaged files."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from data.burst import read_permirs
from data.generators.burst import write_burst
from data.rle import mask_corners, run_lengths
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec, render_video
from data.track import Track, TrackError
from tests.data.tao_files import BurstFolder, rle

CUP, DOG = 347, 5
A, B, C = (1, 2, 4, 6), (5, 0, 12, 3), (0, 7, 1, 8)


def read_all(root: Path, split: str = "val") -> list[Track]:
    listed = read_permirs(root, split)
    return [listed.read(pickle.loads(pickle.dumps(entry))) for entry in listed.entries]


@pytest.fixture
def folder(tmp_path: Path) -> BurstFolder:
    """One video of three frames: a dog (1) in all of them, cups 10 and 9 in two and one."""
    made = BurstFolder(tmp_path)
    made.add_sequence("v1", {"1": DOG, "10": CUP, "9": CUP}, [{"1": C, "10": A}, {"1": C, "10": B, "9": A}, {"1": C}])
    made.write()
    return made


def test_the_target_is_the_most_frequent_track_that_has_a_sibling(folder: BurstFolder) -> None:
    (track,) = read_all(folder.root)
    assert (track.id, track.video, track.source, track.category) == ("val/BDD/v1/10", "val/BDD/v1", "permirs", "cup")
    assert [frame.corners for frame in track.frames] == [A, B, None]
    assert [frame.absence for frame in track.frames] == [None, None, "absent"]
    # The sibling comes before the dog.
    assert [frame.others for frame in track.frames] == [(C,), (A, C), (C,)]
    assert [frame.path for frame in track.frames] == [folder.path("v1", frame) for frame in range(3)]
    assert {frame.size for frame in track.frames} == {(12, 8)}
    assert track.metadata == {
        "track": 10,
        "annotated_frames": 2,
        "distractors": [
            {"track": 9, "category": "cup", "annotated_frames": 1},
            {"track": 1, "category": "dog", "annotated_frames": 3},
        ],
    }
    json.dumps(dict(track.metadata))


def test_track_ids_are_numbers_also_in_a_tie(folder: BurstFolder) -> None:
    # As texts, "10" would be the smaller one.
    folder.sequences[0]["segmentations"][2]["9"] = {"rle": rle(B)}
    assert read_all(folder.write())[0].metadata["track"] == 9


def test_videos_without_siblings_are_no_entries_and_are_counted(
    folder: BurstFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.add_sequence("other classes", {"1": DOG, "2": CUP}, [{"1": A, "2": B}])
    folder.add_sequence("a sibling without any mask", {"1": CUP, "2": CUP}, [{"1": A}])
    folder.add_sequence("of a training set", {"1": CUP, "2": CUP}, [{"1": A, "2": B}], dataset="LaSOT")
    folder.write()
    with caplog.at_level(logging.INFO, logger="data.burst"):
        assert [track.video for track in read_all(folder.root)] == ["val/BDD/v1"]
    assert "4 sequences, 1 of them from AVA, HACS, LaSOT, 2 others without two tracks of a class; 1 tracks" in caplog.text
    assert read_permirs(folder.root, "val").left_out == {"from_LaSOT": 1, "without_sibling": 2}


def test_what_is_left_out_is_not_looked_at(folder: BurstFolder) -> None:
    folder.add_sequence("v9", {"1": CUP, "2": CUP}, [{"1": A, "2": B}], dataset="AVA").pop("segmentations")
    assert [track.video for track in read_all(folder.write())] == ["val/BDD/v1"]


def test_when_all_is_left_out_the_counts_are_told(folder: BurstFolder) -> None:
    folder.sequences[0]["dataset"] = "HACS"
    with pytest.raises(TrackError, match=r"1 sequences, 1 of them from AVA, HACS, LaSOT, 0 others .*: none is left"):
        read_permirs(folder.write(), "val")


def test_a_file_without_any_siblings_is_refused_with_the_count(folder: BurstFolder) -> None:
    folder.sequences[0]["segmentations"] = [{"10": {"rle": rle(A)}}] * 3
    with pytest.raises(TrackError, match=r"1 sequences, 0 of them .*, 1 others without two tracks of a class: none is left"):
        read_permirs(folder.write(), "val")


def test_a_mask_without_pixels_is_an_absent_track(folder: BurstFolder) -> None:
    folder.sequences[0]["segmentations"][1]["10"]["rle"] = rle(None)
    (track,) = read_all(folder.write())
    assert [frame.absence for frame in track.frames] == [None, "absent", "absent"]


def test_the_archives_may_lie_side_by_side(folder: BurstFolder) -> None:
    (expected,) = read_all(folder.root)
    shutil.move(folder.root / "frames" / "val", folder.root / "val")
    shutil.move(folder.file, folder.root / "val" / "all_classes.json")
    (track,) = read_all(folder.root)
    assert [frame.corners for frame in track.frames] == [frame.corners for frame in expected.frames]
    assert track.frames[0].path == folder.root / "val" / "BDD" / "v1" / "0.jpg"


def test_what_is_expected_where_is_said(folder: BurstFolder) -> None:
    with pytest.raises(TrackError, match=r"split 'test' is not under .*annotations/test/all_classes\.json .* images under"):
        read_permirs(folder.root, "test")
    with pytest.raises(TrackError, match="no split 'validation'; choose from train, val, test"):
        read_permirs(folder.root, "validation")


def sequence(folder: BurstFolder) -> dict[str, Any]:
    return folder.sequences[0]


def mask(folder: BurstFolder) -> dict[str, Any]:
    record: dict[str, Any] = sequence(folder)["segmentations"][0]["10"]
    return record


Damage = Callable[[BurstFolder], object]
WHEN_LISTED: list[tuple[str, Damage, str]] = [
    ("video twice", lambda f: f.sequences.append(f.sequences[0]), "the sequence val/BDD/v1 comes twice"),
    ("category twice", lambda f: f.categories.append(f.categories[0]), "the category id 347 comes twice"),
    ("no sequences", lambda f: setattr(f, "sequences", None), "'sequences' must be an array, got None"),
]
WHEN_READ: list[tuple[str, Damage, str]] = [
    ("a frame too few", lambda f: sequence(f)["segmentations"].pop(), "3 annotated_image_paths, but 2 segmentations"),
    ("an image twice", lambda f: sequence(f).update(annotated_image_paths=["0.jpg"] * 3), "must be different texts"),
    ("unknown track", lambda f: sequence(f)["track_category_ids"].pop("9"), "frame 1: track 9 is not in track_category_ids"),
    ("unknown category", lambda f: sequence(f)["track_category_ids"].update({"9": 6}), "category 6, which does not exist"),
    ("id of letters", lambda f: sequence(f)["track_category_ids"].update(x=5), "a track id must be a number, got 'x'"),
    (
        "one id, two texts",
        lambda f: sequence(f)["track_category_ids"].update({"09": 5}),
        "two track ids are the same number",
    ),
    ("no mask", lambda f: mask(f).pop("rle"), "frame 0, track 10 lacks the key 'rle'"),
    ("a mask of numbers", lambda f: mask(f).update(rle=[1, 2]), "'rle' must be a text"),
    ("masks are a list", lambda f: sequence(f).update(segmentations=[[], [], []]), "expected an object"),
    ("no height", lambda f: sequence(f).pop("height"), "lacks the key 'height'"),
    ("width of nothing", lambda f: sequence(f).update(width=0), "'width' must be an integer of at least 1"),
    ("no dataset", lambda f: sequence(f).pop("dataset"), "sequence number 0 lacks the key 'dataset'"),
    ("larger", lambda f: mask(f).update(rle=rle(A, 13, 8)), r"frame 0, track 10: the mask has 104 pixels, .*12×8 = 96"),
    ("smaller", lambda f: mask(f).update(rle=rle(A, 12, 7)), "the mask has 84 pixels"),
    ("other sizes", lambda f: sequence(f).update(width=24), "the mask has 96 pixels, the image 24×8"),
    ("cut off", lambda f: mask(f).update(rle=mask(f)["rle"][:-2]), "the mask has"),
    ("cut inside a number", lambda f: mask(f).update(rle=mask(f)["rle"] + "o"), "cut off inside a number"),
    ("other characters", lambda f: mask(f).update(rle="12,3"), "not the text of a mask"),
    ("letters with accents", lambda f: mask(f).update(rle="é" * 4), "not the text of a mask"),
    ("missing image", lambda f: f.path("v1", 2).unlink(), r"v1/2\.jpg is missing; .*sequence number 0 \(BDD/v1\) lists it"),
]


@pytest.mark.parametrize(("damage", "message"), [each[1:] for each in WHEN_LISTED], ids=[each[0] for each in WHEN_LISTED])
def test_an_annotation_file_that_contradicts_itself_is_refused(folder: BurstFolder, damage: Damage, message: str) -> None:
    damage(folder)
    folder.write()
    with pytest.raises(TrackError, match=rf"all_classes\.json.*{message}"):
        read_permirs(folder.root, "val")


@pytest.mark.parametrize(("damage", "message"), [each[1:] for each in WHEN_READ], ids=[each[0] for each in WHEN_READ])
def test_a_damaged_video_is_refused_and_the_other_is_read(folder: BurstFolder, damage: Damage, message: str) -> None:
    folder.add_sequence("v2", {"1": CUP, "2": CUP}, [{"1": A, "2": B}])
    damage(folder)
    listed = read_permirs(folder.write(), "val")
    with pytest.raises(TrackError, match=message):
        listed.read(listed.entries[0])
    assert listed.read(listed.entries[1]).frames[0].corners == A


def test_annotations_of_another_split_are_refused(folder: BurstFolder) -> None:
    folder.file.write_text(folder.file.read_text().replace('"split": "val"', '"split": "test"'))
    with pytest.raises(TrackError, match="annotations of the split 'test', not of 'val'"):
        read_permirs(folder.root, "val")


def test_a_track_that_comes_twice_in_a_frame_is_refused(folder: BurstFolder) -> None:
    folder.file.write_text(folder.file.read_text().replace('"9": {"rle"', '"10": {"rle"'))
    with pytest.raises(TrackError, match="the key '10' appears twice"):
        read_permirs(folder.root, "val")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_off_file_is_refused(folder: BurstFolder, share: float) -> None:
    content = folder.file.read_bytes()
    folder.file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TrackError, match=r"all_classes\.json: broken JSON"):
        read_permirs(folder.root, "val")


# Masks


def test_the_box_of_a_mask_by_hand() -> None:
    """5 × 4, pixels at column 1 rows 2–3 and column 2 rows 0–1, one run of four: 6 outside, 4 inside, 10 outside."""
    mask = np.zeros((4, 5), dtype=np.uint8, order="F")
    mask[2:, 1] = mask[:2, 2] = 1
    text = coco_mask.encode(mask)["counts"].decode()
    assert run_lengths(text).tolist() == [6, 4, 10]
    assert mask_corners(text, 5, 4) == (1, 0, 3, 4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
@example(0, 1, 1, 1.0)
@example(0, 40, 40, 0.0)
def test_boxes_agree_with_the_decoded_pixels(seed: int, width: int, height: int, share: float) -> None:
    drawn = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(drawn))["counts"].decode()
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    expected = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if drawn.any() else None
    assert mask_corners(text, width, height) == expected


@given(st.text(alphabet=[chr(code) for code in range(40, 120)], max_size=30))
def test_no_text_crashes_or_makes_a_box_outside_of_the_image(text: str) -> None:
    try:
        corners = mask_corners(text, 12, 8)
    except ValueError:
        return
    assert run_lengths(text).sum() == 96
    assert corners is None or (0 <= corners[0] < corners[2] <= 12 and 0 <= corners[1] < corners[3] <= 8)


# What the generator writes

SPEC = VideoSpec(frames=9, scene=SceneSpec(width=84, height=84, objects=(3, 3), area=(0.04, 0.08)))


def test_generated_masks_lie_tightly_around_what_was_painted(tmp_path: Path) -> None:
    write_burst(tmp_path, 6, seed=3, spec=SPEC)
    tracks = read_all(tmp_path)
    assert len(tracks) == 6
    for index, track in enumerate(tracks):
        rendered = list(render_video(SPEC, 3, "val", index))
        boxes = [shown.drawn.corners for shown in rendered[0].objects]
        distances = [np.abs(np.subtract(box, track.frames[0].corners or ())).max() for box in boxes]
        target = int(np.argmin(distances))
        for frame, shown in zip(track.frames, rendered, strict=True):
            # A tip covers less than half a pixel: up to two pixels of slack.
            np.testing.assert_allclose(frame.corners or (), shown.objects[target].drawn.corners, atol=2)
            with Image.open(frame.path) as image:
                assert image.size == frame.size == (84, 84)


def test_the_generated_target_has_the_most_masks_and_siblings_where_an_episode_looks(tmp_path: Path) -> None:
    write_burst(tmp_path, 10, seed=0, split="test", spec=SPEC)
    for track in read_all(tmp_path, "test"):
        assert track.metadata["annotated_frames"] == 9
        assert [each["category"] for each in track.metadata["distractors"]] == [track.category] * 2
        assert all(5 <= each["annotated_frames"] <= 8 for each in track.metadata["distractors"])
        assert all(len(track.frames[frame].others) == 2 for frame in (0, 2, 4, 6, 8))


def test_generated_traps_are_what_the_generator_says(tmp_path: Path) -> None:
    file = write_burst(tmp_path, 7, seed=1, spec=SPEC, traps=True)
    records = json.loads(file.read_text())["sequences"]
    assert [record["dataset"] for record in records] == ["YFCC100M"] * 5 + ["LaSOT", "YFCC100M"]
    assert len(set(records[0]["track_category_ids"].values())) == 3
    tracks = {track.video.rpartition("/")[2]: track for track in read_all(tmp_path)}
    read = [tracks.get(record["seq_name"]) for record in records]
    assert read[0] is None and read[5] is None and read[6] is not None
    _, lone, empty, tie, absent, *_ = read
    assert lone is not None and empty is not None and tie is not None and absent is not None
    masks = Counter(track for each in records[1]["segmentations"] for track in each)
    assert masks.most_common(1)[0] == (str(lone.metadata["distractors"][-1]["track"]), 9)
    assert lone.metadata["annotated_frames"] < 9
    assert [frame.absence for frame in empty.frames] == [None, None, "absent"] + [None] * 6
    assert tie.metadata["track"] == 9 and {"track": 10, "annotated_frames": 9} in [
        {key: each[key] for key in ("track", "annotated_frames")} for each in tie.metadata["distractors"]
    ]
    assert [frame.absence for frame in absent.frames] == [None] * 4 + ["absent"] + [None] * 4


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_burst(tmp_path / str(workers), 4, seed=3, spec=SPEC, traps=True, workers=workers)
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(files) == 1 + 4 * 9
    assert all((tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes() for file in files)

"""TAO: the target, its siblings and every trap by hand; what the generator writes; damaged files."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.generators.labelled_video import episode_frames
from data.generators.tao import write_tao
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec, render_video
from data.tao import read_tao
from data.track import Track, TrackError
from tests.data.tao_files import TaoFolder


def read_all(root: Path, split: str = "train") -> list[Track]:
    listed = read_tao(root, split)
    return [listed.read(pickle.loads(pickle.dumps(entry))) for entry in listed.entries]


@pytest.fixture
def folder(tmp_path: Path) -> TaoFolder:
    """Two videos: track 7 is in three frames of the first, track 4 in two; video 2 has one track of one box."""
    made = TaoFolder(tmp_path)
    made.add_video(1, frames=4)
    made.add_video(2, frames=2)
    made.add_track(7, 1, {0: [1, 2, 10, 20], 1: [2, 3, 10, 20], 3: [4, 5, 10, 20]})
    made.add_track(4, 1, {1: [30, 8, 5.5, 6], 3: [31, 8, 5.5, 6]})
    made.add_track(9, 2, {1: [0, 0, 60, 40]}, category=5)
    made.write()
    return made


def test_the_target_is_the_most_frequent_track_and_the_others_are_distractors(folder: TaoFolder) -> None:
    first, second = read_all(folder.root)
    assert (first.id, first.video, first.source, first.category) == ("train/BDD/v1/7", "train/BDD/v1", "tao", "cup")
    assert [frame.corners for frame in first.frames] == [(1, 2, 11, 22), (2, 3, 12, 23), None, (4, 5, 14, 25)]
    assert [frame.absence for frame in first.frames] == [None, None, "absent", None]
    assert [frame.others for frame in first.frames] == [(), ((30, 8, 35.5, 14),), (), ((31, 8, 36.5, 14),)]
    assert [frame.path for frame in first.frames] == [folder.path(1, frame) for frame in range(4)]
    assert {frame.size for frame in first.frames} == {(60, 40)}
    assert first.metadata == {
        "track": 7,
        "annotated_frames": 3,
        "distractors": [{"track": 4, "category": "cup", "annotated_frames": 2}],
    }
    assert (second.category, second.metadata["distractors"]) == ("dog", [])
    json.dumps(dict(first.metadata))


def test_of_equally_frequent_tracks_the_smallest_id_is_the_target(folder: TaoFolder) -> None:
    folder.add_track(6, 1, {0: [1, 1, 2, 2], 1: [1, 1, 2, 2], 2: [1, 1, 2, 2]})
    assert read_all(folder.write())[0].metadata["track"] == 6


def test_frames_are_ordered_by_frame_index_not_by_id_or_place(folder: TaoFolder) -> None:
    for image, index in zip(folder.images[:4], (90, 0, 60, 30), strict=True):
        image["frame_index"] = index
    track = read_all(folder.write())[0]
    assert [frame.path for frame in track.frames] == [folder.path(1, frame) for frame in (1, 3, 2, 0)]
    assert [frame.corners for frame in track.frames] == [(2, 3, 12, 23), (4, 5, 14, 25), None, (1, 2, 11, 22)]


def test_a_merged_category_is_the_one_that_remains(folder: TaoFolder) -> None:
    # LVIS v0.5's glass (504) and mug (720) became cup (347) in TAO; both stay in the list of categories.
    folder.categories += [{"id": 504, "name": "glass"}, {"id": 720, "name": "mug"}]
    folder.categories[0]["merged"] = [{"id": 504, "name": "glass"}, {"id": 720, "name": "mug"}]
    folder.tracks[0]["category_id"] = 720
    folder.annotations[0]["category_id"] = 504
    assert read_all(folder.write())[0].category == "cup"


def test_a_category_may_say_that_nothing_was_merged(folder: TaoFolder) -> None:
    folder.categories[0]["merged"] = None
    assert [track.category for track in read_all(folder.write())] == ["cup", "dog"]


def test_negative_boxes_are_kept_and_empty_ones_count_as_unannotated(folder: TaoFolder) -> None:
    folder.annotations[0]["bbox"] = [-5, -3, 15, 25]
    folder.annotations[1]["bbox"] = [2, 3, 0, 20]
    track = read_all(folder.write())[0]
    assert [frame.corners for frame in track.frames[:2]] == [(-5, -3, 10, 22), (2, 3, 2, 23)]
    assert [frame.absence for frame in track.frames[:2]] == [None, "unannotated"]


def test_a_video_without_annotations_is_no_entry(folder: TaoFolder) -> None:
    folder.add_video(3, frames=2)
    assert [track.video for track in read_all(folder.write())] == ["train/BDD/v1", "train/BDD/v2"]


def test_a_split_that_is_not_there_is_named_with_those_that_are(folder: TaoFolder) -> None:
    with pytest.raises(TrackError, match=r"no split 'val' .*annotations/val\.json.*annotation file of train"):
        read_tao(folder.root, "val")
    with pytest.raises(TrackError, match=r"expected .*annotations/train\.json and images under .*frames"):
        read_tao(folder.root / "nowhere", "train")


Damage = Callable[[TaoFolder], object]
WHEN_LISTED: list[tuple[str, Damage, str]] = [
    ("image of another video", lambda f: f.annotations[0].update(image_id=200), "track 7 is of video 1, image 200 of 2"),
    ("track in two videos", lambda f: f.tracks.append({**f.tracks[0], "video_id": 2}), "the track id 7 comes twice"),
    ("image twice", lambda f: f.images.append(f.images[0]), "the image id 100 comes twice"),
    ("category twice", lambda f: f.categories.append(f.categories[0]), "the category id 347 comes twice"),
    ("unknown both", lambda f: f.annotations[0].update(track_id=99, image_id=999), "no track 99, and no image 999"),
    ("id is a text", lambda f: f.tracks[0].update(id="7"), "track number 0: 'id' must be an integer, got '7'"),
    ("record is no object", lambda f: f.annotations.insert(0, [1]), "annotation number 0 must be an object"),
    ("merged twice", lambda f: [c.update(merged=[{"id": 8}]) for c in f.categories], "category 8 was merged .* already"),
    ("no video", lambda f: f.images[3].pop("video_id"), "image 103 lacks the key 'video_id'"),
]
WHEN_READ: list[tuple[str, Damage, str]] = [
    ("unknown image", lambda f: f.annotations[0].update(image_id=999), "annotation number 0: there is no image 999"),
    ("unknown track", lambda f: f.annotations[1].update(track_id=99), "annotation number 1: there is no track 99"),
    ("unknown category", lambda f: f.tracks[0].update(category_id=6), "track 7: there is no category 6"),
    ("annotation id twice", lambda f: f.annotations[1].update(id=1), "another annotation has the id 1"),
    ("two boxes", lambda f: f.annotations.append({**f.annotations[0], "id": 77}), "track 7 has a box in image 100 already"),
    ("category of the box", lambda f: f.annotations[0].update(category_id=5), "not that of its track 7"),
    ("no box", lambda f: f.annotations[2].pop("bbox"), "annotation number 2 lacks the key 'bbox'"),
    ("no width", lambda f: f.images[3].pop("width"), "image 103 lacks the key 'width'"),
    ("no size", lambda f: f.images[3].update(height=0), "image 103: 'height' must be an integer of at least 1, got 0"),
    ("id is true", lambda f: f.annotations[0].update(track_id=True), "'track_id' must be an integer, got True"),
    ("NaN", lambda f: f.annotations[0].update(bbox=[1, 2, float("nan"), 4]), "track 7 in image 100: a box must be finite"),
    ("infinite", lambda f: f.annotations[3].update(bbox=[1, 2, 3, float("inf")]), "track 4 in image 101: .*finite"),
    ("beyond floats", lambda f: f.annotations[0].update(bbox=[1, 2, 3, 10**400]), "must be finite"),
    ("three numbers", lambda f: f.annotations[0].update(bbox=[1, 2, 3]), r"must be four numbers, got \[1, 2, 3\]"),
    ("texts", lambda f: f.annotations[0].update(bbox=["1", 2, 3, 4]), "must be four numbers"),
    ("frame_index twice", lambda f: f.images[1].update(frame_index=0), "video 1: two images have the frame_index 0"),
    ("file twice", lambda f: f.images[1].update(file_name=f.file_name(1, 0)), "two images have the file_name"),
    ("other video's file", lambda f: f.images[0].update(file_name=f.file_name(2, 0)), "its images lie in several folders"),
    ("missing image", lambda f: f.path(1, 2).unlink(), r"v1/frame0061\.jpg is missing; .*train\.json: video 1 lists it"),
    ("impossible name", lambda f: f.images[0].update(file_name="train/BDD/v1/" + "a" * 300), "is missing"),
]


@pytest.mark.parametrize(("damage", "message"), [each[1:] for each in WHEN_LISTED], ids=[each[0] for each in WHEN_LISTED])
def test_an_annotation_file_that_contradicts_itself_is_refused(folder: TaoFolder, damage: Damage, message: str) -> None:
    damage(folder)
    folder.write()
    with pytest.raises(TrackError, match=rf"train\.json.*{message}"):
        read_tao(folder.root, "train")


@pytest.mark.parametrize(("damage", "message"), [each[1:] for each in WHEN_READ], ids=[each[0] for each in WHEN_READ])
def test_a_damaged_video_is_refused_and_the_other_is_read(folder: TaoFolder, damage: Damage, message: str) -> None:
    damage(folder)
    listed = read_tao(folder.write(), "train")
    with pytest.raises(TrackError, match=message):
        listed.read(listed.entries[0])
    assert listed.read(listed.entries[1]).video == "train/BDD/v2"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_off_file_is_refused(folder: TaoFolder, share: float) -> None:
    content = folder.file.read_bytes()
    folder.file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TrackError, match=r"train\.json: broken JSON"):
        read_tao(folder.root, "train")


def test_a_key_that_comes_twice_is_refused(folder: TaoFolder) -> None:
    folder.file.write_text(folder.file.read_text().replace('"bbox":', '"bbox": [0, 0, 1, 1], "bbox":', 1))
    with pytest.raises(TrackError, match="the key 'bbox' appears twice"):
        read_tao(folder.root, "train")


def test_a_file_of_something_else_is_refused(folder: TaoFolder) -> None:
    folder.file.write_text("[]")
    with pytest.raises(TrackError, match=r"train\.json must be an object, got \[\]"):
        read_tao(folder.root, "train")


# What the generator writes

FAST = VideoSpec(frames=9, scene=SceneSpec(width=56, height=56, area=(0.04, 0.12)))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tao")
    write_tao(root, 20, seed=3, spec=FAST)
    return root


def test_generated_tracks_hold_the_painted_boxes(generated: Path) -> None:
    for index, track in enumerate(read_all(generated)):
        painted = [[shown.box.corners for shown in frame.objects] for frame in render_video(FAST, 3, "train", index)]
        target = painted[0].index(track.frames[0].corners or ())
        for frame, boxes in zip(track.frames, painted, strict=True):
            assert frame.corners == boxes[target] and frame.absence is None
            assert set(frame.others) <= set(boxes) - {frame.corners}
            with Image.open(frame.path) as image:
                assert image.format == "JPEG" and image.size == frame.size == (56, 56)


def test_nine_frames_episodes_show_the_even_ones() -> None:
    assert episode_frames(9) == {0, 2, 4, 6, 8}
    assert episode_frames(6) == {0, 1, 2, 3, 5}


def test_distractors_are_annotated_wherever_an_episode_looks_and_never_as_often_as_the_target(generated: Path) -> None:
    for track in read_all(generated):
        distractors = track.metadata["distractors"]
        assert track.metadata["annotated_frames"] == 9
        assert all(5 <= each["annotated_frames"] <= 8 for each in distractors)
        assert all(each["category"] == track.category for each in distractors)
        assert all(len(track.frames[frame].others) == len(distractors) for frame in (0, 2, 4, 6, 8))


def test_neither_the_order_of_ids_nor_size_nor_place_tells_the_target(tmp_path: Path) -> None:
    write_tao(tmp_path, 150, seed=0, spec=VideoSpec(frames=6, scene=SceneSpec(56, 56, objects=(2, 2))))
    tracks = read_all(tmp_path)
    pairs = [(track.frames[0].corners, track.frames[0].others[0], track) for track in tracks if track.frames[0].others]
    assert len(pairs) > 130
    # Each share is of a fair coin: 0.5 ± 4 standard deviations.
    slack = 4 * 0.5 / len(pairs) ** 0.5
    first = sum(track.metadata["track"] < track.metadata["distractors"][0]["track"] for _, _, track in pairs)
    larger = sum((a[2] - a[0]) * (a[3] - a[1]) > (b[2] - b[0]) * (b[3] - b[1]) for a, b, _ in pairs)
    left = sum(a[0] + a[2] < b[0] + b[2] for a, b, _ in pairs)
    for count in (first, larger, left):
        assert abs(count / len(pairs) - 0.5) < slack


@pytest.mark.parametrize("workers", [1, 2])
def test_same_seed_same_bytes_whatever_the_workers(generated: Path, tmp_path: Path, workers: int) -> None:
    write_tao(tmp_path, 20, seed=3, spec=FAST, workers=workers)
    files = sorted(path.relative_to(generated) for path in generated.rglob("*") if path.is_file())
    assert len(files) == 1 + 20 * 9
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((tmp_path / file).read_bytes() == (generated / file).read_bytes() for file in files)


def test_generated_traps_say_what_the_generator_says(tmp_path: Path) -> None:
    spec = VideoSpec(frames=9, scene=SceneSpec(width=84, height=84, objects=(3, 3), area=(0.04, 0.08)))
    file = write_tao(tmp_path, 12, seed=1, split="validation", photographs="val", spec=spec, traps=True)
    content: dict[str, Any] = json.loads(file.read_text())
    assert [image["id"] for image in content["images"]] != sorted(image["id"] for image in content["images"])
    tracks = read_all(tmp_path, "validation")
    plain, negative, empty, tie, absent, *_ = tracks
    assert len(tracks) == 12 and all(track.video.startswith("val/YFCC100M/v_") for track in tracks)
    named = {record["id"]: record["category_id"] for record in content["tracks"]}
    assert named[plain.metadata["track"]] > 1000 and not plain.category.endswith("_shape")
    assert negative.frames[0].corners is not None and negative.frames[0].corners[:2] == (-5, -3)
    assert [frame.absence for frame in empty.frames] == [None, None, "unannotated", *[None] * 6]
    counts = Counter({each["track"]: each["annotated_frames"] for each in tie.metadata["distractors"]})
    assert counts.most_common(1)[0][1] == 9 and min(counts) > tie.metadata["track"]
    assert [frame.absence for frame in absent.frames] == [None] * 4 + ["absent"] + [None] * 4
    assert absent.frames[4].others == ()


def test_a_video_too_short_for_roles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 6 frames or more, got 5"):
        write_tao(tmp_path, 1, seed=0, spec=VideoSpec(frames=5))

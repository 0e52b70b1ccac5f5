"""The LaSOT reader: the format's traps with numbers worked out by hand, every damage by name, and generated folders back."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.generators.lasot import write_lasot
from data.generators.single_target import target_frames
from data.lasot import read_lasot, read_video
from data.synthetic_video import VideoSpec
from data.track import TrackError
from tests.data.track_cases import absences, contents, corners, lasot_video


def test_boxes_count_from_one_and_become_half_open_corners_that_count_from_zero(tmp_path: Path) -> None:
    track = read_video(lasot_video(tmp_path, boxes=["1,1,10,20", "5,7,30,40", "1280,720,1,1"]))
    assert corners(track) == [(0, 0, 10, 20), (4, 6, 34, 46), (1279, 719, 1280, 720)]
    assert absences(track) == [None, None, None]
    assert (track.id, track.source, track.video, track.category) == ("airplane-1", "lasot", "airplane-1", "airplane")
    assert track.frames[2].path == tmp_path / "airplane" / "airplane-1" / "img" / "00000003.jpg"


def test_flagged_frames_keep_their_box(tmp_path: Path) -> None:
    boxes = ["1,1,10,20", "5,7,30,40", "9,9,9,9", "9,9,9,9"]
    track = read_video(lasot_video(tmp_path, boxes=boxes, occluded="0,1,0,1", outside="0,0,1,1\n"))
    assert absences(track) == [None, "full_occlusion", "out_of_view", "out_of_view"]
    assert corners(track)[1] == (4, 6, 34, 46)


def test_a_box_without_area_is_no_visible_target(tmp_path: Path) -> None:
    boxes = ["0,0,0,0", "5,7,0,40", "5,7,30,0", "1,1,-1,-1", "0,0,0,0"]
    track = read_video(lasot_video(tmp_path, boxes=boxes, outside="0,0,0,0,1"))
    assert absences(track) == ["unannotated"] * 4 + ["out_of_view"]
    assert corners(track)[1] == (4, 6, 4, 46)
    assert corners(track)[3] == (0, 0, -1, -1)


def test_a_box_may_begin_outside_of_the_image(tmp_path: Path) -> None:
    track = read_video(lasot_video(tmp_path, boxes=["550,-11,260,218", "-38,0,60,10"]))
    assert corners(track) == [(549, -12, 809, 206), (-39, -1, 21, 9)]
    assert absences(track) == [None, None]


@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\n\n"])
def test_the_end_of_the_last_line_is_free(tmp_path: Path, ending: str) -> None:
    folder = lasot_video(tmp_path)
    (folder / "groundtruth.txt").write_bytes(f"1,1,10,20\r\n 5, 7,30,40\r\n11,21,3,4{ending}".encode())
    assert corners(read_video(folder)) == [(0, 0, 10, 20), (4, 6, 34, 46), (10, 20, 13, 24)]


def test_splits_follow_the_list_and_videos_come_by_class_and_number(tmp_path: Path) -> None:
    for name in ("airplane-10", "airplane-2", "rubicCube-1", "bear-3"):
        lasot_video(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "airplane" / "airplane").mkdir()
    (tmp_path / "testing_set.txt").write_text("bear-3\nairplane-10")
    listed = {split: [entry.name for entry in read_lasot(tmp_path, split).entries] for split in ("train", "test", "all")}
    assert listed == {
        "train": ["airplane-2", "rubicCube-1"],
        "test": ["bear-3", "airplane-10"],
        "all": ["airplane-2", "airplane-10", "bear-3", "rubicCube-1"],
    }


def test_training_refuses_a_list_with_a_name_cut_short(tmp_path: Path) -> None:
    """Its video would be trained on."""
    for name in ("airplane-1", "airplane-12"):
        (tmp_path / "airplane" / name).mkdir(parents=True)
    (tmp_path / "testing_set.txt").write_text("airplane-12\n")
    assert [folder.name for folder in read_lasot(tmp_path, "train").entries] == ["airplane-1"]
    for name in ("airplane-2", "airplane-12\nairplane-2"):
        (tmp_path / "testing_set.txt").write_text(name)
        with pytest.raises(ValueError, match=r"ends with airplane-2, without a line end, and .* has no such video"):
            read_lasot(tmp_path, "train")


@pytest.mark.parametrize("names", ["airplane-2\nairplane-12\n", "airplane-2\nairplane-12", "airplane-2\nboat-1"])
def test_training_needs_no_test_videos(tmp_path: Path, names: str) -> None:
    """Those of a part of LaSOT may be absent, and whole classes."""
    for name in ("airplane-1", "airplane-12"):
        (tmp_path / "airplane" / name).mkdir(parents=True)
    (tmp_path / "testing_set.txt").write_text(names)
    listed = {folder.name for folder in read_lasot(tmp_path, "train").entries}
    assert listed == {"airplane-1"} | ({"airplane-12"} if "boat" in names else set())


def test_a_listed_video_that_is_not_there_is_an_error_of_that_video(tmp_path: Path) -> None:
    lasot_video(tmp_path)
    (tmp_path / "testing_set.txt").write_text("airplane-1\nairplane-9\n")
    tracks = read_lasot(tmp_path, "test")
    assert tracks.read(tracks.entries[0]).id == "airplane-1"
    with pytest.raises(TrackError, match=r"airplane-9/groundtruth.txt: the file is missing"):
        tracks.read(tracks.entries[1])


def test_what_is_not_lasot_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no split 'val'; choose from train, test, all"):
        read_lasot(tmp_path, "val")
    with pytest.raises(ValueError, match=r"no folder .*expected the layout <root>/<class>/<class>-<number>/"):
        read_lasot(tmp_path / "nowhere", "all")
    with pytest.raises(ValueError, match="no videos of the split 'all'"):
        read_lasot(tmp_path, "all")
    lasot_video(tmp_path)
    with pytest.raises(ValueError, match=r"no list of videos at .*testing_set.txt; .* 'all' needs no list"):
        read_lasot(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"testing_set.txt: the file is empty"),
        ("airplane-1\n\nbear-2\n", r"testing_set.txt:2: expected the name of a video, got ''"),
        ("../airplane-1\n", r"testing_set.txt:1: expected the name of a video"),
        ("airplane-1\nbear-2\nairplane-1\n", r"testing_set.txt:3: airplane-1 is listed already, on line 1"),
        ("airplane\n", r"testing_set.txt: expected names like airplane-1, got 'airplane'"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    lasot_video(tmp_path)
    (tmp_path / "testing_set.txt").write_text(text)
    with pytest.raises(TrackError, match=problem):
        read_lasot(tmp_path, "test")


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    encoded = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(encoded)


def _rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (
        _write("groundtruth.txt", "1,1,10,20\n5,7,30,40\n"),
        r"groundtruth.txt: speaks of 2 images, .* has 00000003.jpg too: cut off",
    ),
    (
        _write("groundtruth.txt", "1,1,10,20\n5,7,30\n11,21,3,4\n"),
        r"groundtruth.txt:2: expected x,y,width,height, got 3 values",
    ),
    (_write("groundtruth.txt", "1,1,10,20\n5,7,30,40,1\n11,21,3,4\n"), r"groundtruth.txt:2: .* got 5 values"),
    (_write("groundtruth.txt", "1,1,10,20\n5 7 30 40\n11,21,3,4\n"), r"groundtruth.txt:2: .* got 1 values"),
    (_write("groundtruth.txt", "1,1,10,20\n\n5,7,30,40\n11,21,3,4\n"), r"groundtruth.txt:2: a blank line in place of a box"),
    (_write("groundtruth.txt", "\n1,1,10,20\n5,7,30,40\n11,21,3,4\n"), r"groundtruth.txt:1: a blank line"),
    (_write("groundtruth.txt", "1,1,10,20\n5,nan,30,40\n11,21,3,4\n"), r"groundtruth.txt:2: expected an integer, got 'nan'"),
    (_write("groundtruth.txt", "1,1,10,20\n5,inf,30,40\n11,21,3,4\n"), r"groundtruth.txt:2: expected an integer, got 'inf'"),
    (_write("groundtruth.txt", "1,1,10,20\n5,7.5,30,40\n11,21,3,4\n"), r"groundtruth.txt:2: expected an integer, got '7.5'"),
    (_write("groundtruth.txt", "1,1,10,20\n5,,30,40\n11,21,3,4\n"), r"groundtruth.txt:2: expected an integer, got ''"),
    (_write("groundtruth.txt", "1,1,10,20\n5,1_0,30,40\n11,21,3,4\n"), r"groundtruth.txt:2: expected an integer, got '1_0'"),
    (
        _write("groundtruth.txt", f"1,1,10,20\n5,7,{'9' * 400},40\n11,21,3,4\n"),
        r"groundtruth.txt:2: 9+ is no pixel coordinate",
    ),
    (_write("groundtruth.txt", "\ufeff1,1,10,20\n5,7,30,40\n11,21,3,4\n"), r"groundtruth.txt:1: expected an integer"),
    (_write("groundtruth.txt", b"1,1,10,20\n5,7,30,\xff40\n11,21,3,4\n"), r"groundtruth.txt: not UTF-8 text at byte 17"),
    (_write("groundtruth.txt", ""), r"groundtruth.txt: the file is empty"),
    (_write("full_occlusion.txt", "0,0"), r"full_occlusion.txt:1: 2 values for 3 frames"),
    (_write("full_occlusion.txt", "0,0,0,0"), r"full_occlusion.txt:1: 4 values for 3 frames"),
    (_write("full_occlusion.txt", "0,0,"), r"full_occlusion.txt:1: expected a number from 0 to 1, got ''"),
    (_write("out_of_view.txt", "0,2,0"), r"out_of_view.txt:1: expected a number from 0 to 1, got '2'"),
    (_write("out_of_view.txt", "0,nan,0"), r"out_of_view.txt:1: expected a number from 0 to 1, got 'nan'"),
    (_write("out_of_view.txt", "0\n0\n0\n"), r"out_of_view.txt:2: expected one comma-separated line .* got 3 lines"),
    (lambda folder: (folder / "out_of_view.txt").unlink(), r"out_of_view.txt: the file is missing"),
    (lambda folder: (folder / "img" / "00000002.jpg").unlink(), r"img/00000002.jpg: the image is missing"),
    (lambda folder: (folder / "img" / "00000003.jpg").unlink(), r"img/00000003.jpg: the image is missing"),
    (
        lambda folder: (folder / "img" / "00000004.jpg").touch(),
        r"groundtruth.txt: speaks of 3 images, .* has 00000004.jpg too",
    ),
    (_rename("img/00000003.jpg", "img/00000004.jpg"), r"img/00000003.jpg: the image is missing"),
    (_rename("img/00000001.jpg", "img/1.jpg"), r"img/00000001.jpg: the image is missing"),
    (_rename("img/00000001.jpg", "img/00000001.png"), r"img/00000001.jpg: the image is missing"),
    (lambda folder: shutil.rmtree(folder / "img"), r"img: the folder of images cannot be read"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_damage_is_named_with_its_file_and_line(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    folder = lasot_video(tmp_path)
    damage(folder)
    with pytest.raises(TrackError, match=problem) as raised:
        read_video(folder)
    assert str(raised.value).startswith(str(folder))


def test_a_box_cut_inside_its_last_number_is_noticed_by_its_lacking_line_end(tmp_path: Path) -> None:
    folder = lasot_video(tmp_path, boxes=["1,1,10,20", "5,7,30,40"], occluded="0,0\n", outside="0,0\n")
    (folder / "groundtruth.txt").write_text("1,1,10,20\n5,7,30,4")
    with pytest.raises(TrackError, match=r"groundtruth.txt:2: no line end, .* cut off\? Add a line end if it is whole"):
        read_video(folder)
    (folder / "full_occlusion.txt").write_text("0,0")
    assert len(read_video(folder).frames) == 2


def test_hidden_files_beside_the_images_are_no_images(tmp_path: Path) -> None:
    folder = lasot_video(tmp_path)
    (folder / "img" / "._00000001.jpg").touch()
    assert len(read_video(folder).frames) == 3


def test_generated_videos_come_back_with_the_boxes_that_were_painted(tmp_path: Path) -> None:
    write_lasot(tmp_path, videos=3, seed=7)
    write_lasot(tmp_path, videos=2, seed=7, split="test", photographs="val")
    for split, photographs, videos in (("train", "train", 3), ("test", "val", 2)):
        tracks = pickle.loads(pickle.dumps(read_lasot(tmp_path, split)))
        by_number = sorted((tracks.read(entry) for entry in tracks.entries), key=lambda track: int(track.id.split("-")[1]))
        painted = [list(target_frames(VideoSpec(), 7, photographs, video, traps=False)) for video in range(videos)]
        assert [corners(track) for track in by_number] == [
            [frame.target.box.corners for frame in video] for video in painted
        ]
        assert [track.category for track in by_number] == [video[0].target.shape for video in painted]
        assert all(absence is None for track in by_number for absence in absences(track))


def test_generated_traps_are_those_of_the_format(tmp_path: Path) -> None:
    write_lasot(tmp_path, videos=1, seed=3, traps=True)
    (folder,) = read_lasot(tmp_path, "all").entries
    track, painted = read_video(folder), list(target_frames(VideoSpec(), 3, "train", 0, traps=False))
    plain = [frame.target.box.corners for frame in painted]
    seen = corners(track)
    assert absences(track) == [None, "full_occlusion", "out_of_view", None, "unannotated", None, None, None, None]
    assert seen[0] == plain[0] and seen[1] == plain[1] and seen[5:] == plain[5:]
    width = plain[3][2] - plain[3][0]
    assert seen[3] is not None and seen[3][2] - seen[3][0] == width and -width < seen[3][0] < 0 < seen[3][2]
    boxes = (folder / "groundtruth.txt").read_text().splitlines()
    assert boxes[2] == "0,0,0,0" and re.fullmatch(r"-\d+,\d+,\d+,\d+", boxes[3]) and boxes[4].split(",")[2] == "0"


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        write_lasot(tmp_path / name, videos=3, seed=5, traps=True, workers=workers)
    written = contents(tmp_path / "one")
    assert written == contents(tmp_path / "two")
    write_lasot(tmp_path / "other", videos=3, seed=6, traps=True)
    assert contents(tmp_path / "other") != written


def test_traps_need_a_frame_without_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 frames or more, got 4"):
        write_lasot(tmp_path, videos=1, seed=0, spec=VideoSpec(frames=4), traps=True)

"""The GOT-10k reader: the format's traps with numbers by hand, every damage by name, and generated folders back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from data.generators.got10k import write_got10k
from data.generators.single_target import target_frames
from data.got10k import read_got10k, read_video
from data.synthetic_video import VideoSpec
from data.track import TrackError
from tests.data.track_cases import META_INFO, absences, contents, corners, got10k_video


def test_decimal_boxes_count_from_one_and_become_corners_that_count_from_zero(tmp_path: Path) -> None:
    track = read_video(got10k_video(tmp_path, boxes=["1.0000,1.0000,10.5000,20.0000", "5.2500,7,3e1,.5", "-3.5,11,9,4"]))
    assert corners(track) == [(0, 0, 10.5, 20), (4.25, 6, 34.25, 6.5), (-4.5, 10, 4.5, 14)]
    assert absences(track) == [None, None, None]
    assert track.frames[1].path == tmp_path / "val" / "GOT-10k_Val_000001" / "00000002.jpg"


def test_the_object_class_is_the_category_and_the_rest_is_metadata(tmp_path: Path) -> None:
    track = read_video(got10k_video(tmp_path))
    assert (track.id, track.source, track.video) == ("GOT-10k_Val_000001", "got10k", "GOT-10k_Val_000001")
    assert track.category == "ctenophore"
    assert track.metadata == {
        "motion_class": "swimming",
        "major_class": "invertebrate",
        "root_class": "animal",
        "motion_adverb": "slowly",
        "resolution": "(1920, 1080)",
    }
    # Some official videos change size midway: the description's size is no frame's.
    assert all(frame.size is None for frame in track.frames)


def test_absence_comes_from_the_labels_first_and_from_the_box_last(tmp_path: Path) -> None:
    boxes = ["1,1,5,5", "-1,-1,-1,-1", "4,5,6,7", "4,5,6,7", "-1,-1,-1,-1", "4,5,0,7", "4,5,6,7"]
    track = read_video(got10k_video(tmp_path, boxes=boxes, absence="0110000", cover="8030881"))
    expected = [None, "absent", "absent", "full_occlusion", "unannotated", "unannotated", None]
    assert absences(track) == expected
    assert corners(track)[1] == (-2, -2, -3, -3)
    assert corners(track)[3] == (3, 4, 9, 11)


def test_the_test_split_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the first frame's box alone; evaluate on val \(180 videos\)"):
        read_got10k(tmp_path, "test")


def test_the_list_decides_which_videos_there_are(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        got10k_video(tmp_path, f"GOT-10k_Val_{number:06d}")
    (tmp_path / "val" / "list.txt").write_text("GOT-10k_Val_000010\nGOT-10k_Val_000002\nGOT-10k_Val_000003")
    tracks = read_got10k(tmp_path, "val")
    assert [entry.name[-2:] for entry in tracks.entries] == ["10", "02", "03"]
    with pytest.raises(TrackError, match=r"GOT-10k_Val_000003/groundtruth.txt: the file is missing"):
        tracks.read(tracks.entries[2])


def test_what_is_not_got10k_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'all'; choose from train, val"):
        read_got10k(tmp_path, "all")
    with pytest.raises(ValueError, match=r"no list of videos at .*train/list.txt; expected the layout <root>/{train,val}"):
        read_got10k(tmp_path, "train")


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    encoded = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(encoded)


def _without(start: str) -> str:
    return "".join(line for line in META_INFO.splitlines(keepends=True) if not line.startswith(start))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (_write("groundtruth.txt", "1,1,10,20\n5,7,30,40\n"), r"groundtruth.txt: speaks of 2 images, .* has 00000003.jpg too"),
    (
        _write("groundtruth.txt", "1,1,10,20\n5,7,nan,40\n1,1,3,4\n"),
        r"groundtruth.txt:2: expected a finite number, got 'nan'",
    ),
    (_write("groundtruth.txt", "1,1,10,20\n5,7,-inf,40\n1,1,3,4\n"), r"groundtruth.txt:2: .* got '-inf'"),
    (_write("groundtruth.txt", "1,1,10,20\n5,7,1e400,40\n1,1,3,4\n"), r"groundtruth.txt:2: 1e400 is no pixel coordinate"),
    (_write("groundtruth.txt", "1,1,10,20\n5,7,0x1f,40\n1,1,3,4\n"), r"groundtruth.txt:2: .* got '0x1f'"),
    (_write("groundtruth.txt", "1,1,10,20\n   \n1,1,3,4\n"), r"groundtruth.txt:2: a blank line in place of a box"),
    (_write("groundtruth.txt", "1,1,10,20\n5,7,30\n1,1,3,4\n"), r"groundtruth.txt:2: .* got 3 values"),
    (
        _write("groundtruth.txt", "1.00,1.00,10.00,20.00\n-1,-1,-1,-1\n1.00,1.00,3.00,4.0"),
        r"groundtruth.txt:3: cut off inside",
    ),
    (_write("groundtruth.txt", b"\xff\xfe1\x00"), r"groundtruth.txt: not UTF-8 text at byte 0"),
    (_write("absence.label", "0\n0\n"), r"absence.label:2: 2 lines for 3 frames"),
    (_write("absence.label", "0\n0\n0\n0\n"), r"absence.label:4: 4 lines for 3 frames"),
    (_write("absence.label", "0\n2\n0\n"), r"absence.label:2: expected a number from 0 to 1, got '2'"),
    (_write("absence.label", "0\n\n0\n0\n"), r"absence.label:2: expected a number from 0 to 1, got ''"),
    (_write("absence.label", "0,0,0\n"), r"absence.label:1: expected a number from 0 to 1, got '0,0,0'"),
    (_write("cover.label", "8\n9\n8\n"), r"cover.label:2: expected a number from 0 to 8, got '9'"),
    (_write("cover.label", "8\n-1\n8\n"), r"cover.label:2: expected a number from 0 to 8, got '-1'"),
    (_write("cover.label", ""), r"cover.label: the file is empty"),
    (lambda folder: (folder / "cover.label").unlink(), r"cover.label: the file is missing"),
    (_write("meta_info.ini", _without("object_class")), r"meta_info.ini:10: the file ends without an object_class"),
    (_write("meta_info.ini", META_INFO.replace(": ctenophore", ":")), r"meta_info.ini:11: .* without an object_class: add"),
    (_write("meta_info.ini", "[METAINFO]\nobject_class: "), r"meta_info.ini:2: the file ends without an object_class"),
    (_write("meta_info.ini", META_INFO.partition("phore")[0]), r"meta_info.ini:6: the file ends inside its object_class"),
    (_write("meta_info.ini", META_INFO + "object_class: dog\n"), r"meta_info.ini:12: a second object_class"),
    (lambda folder: (folder / "meta_info.ini").unlink(), r"meta_info.ini: the file is missing"),
    (lambda folder: (folder / "00000001.jpg").unlink(), r"00000001.jpg: the image is missing"),
    (lambda folder: (folder / "00000003.jpg").rename(folder / "00000004.jpg"), r"00000003.jpg: the image is missing"),
    (lambda folder: (folder / "00000004.jpg").touch(), r"groundtruth.txt: speaks of 3 images, .* has 00000004.jpg too"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_damage_is_named_with_its_file_and_line(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    folder = got10k_video(tmp_path)
    damage(folder)
    with pytest.raises(TrackError, match=problem) as raised:
        read_video(folder)
    assert str(raised.value).startswith(str(folder))


@pytest.mark.parametrize("last", ["1,1,3,4", "1.0000,1.0000,3.0000,4.0000", "1.25,1.0,3.5,4", "-1,-1,-1,-1"])
@pytest.mark.parametrize("first", ["1,1,10,20", "1.5,1.25,10,20.0", "-1,-1,-1,-1"])
def test_a_whole_last_line_needs_no_line_end(tmp_path: Path, first: str, last: str) -> None:
    folder = got10k_video(tmp_path)
    (folder / "groundtruth.txt").write_text(f"{first}\n5,7,30,40\n{last}")
    assert len(read_video(folder).frames) == 3


def test_a_last_frame_without_a_target_needs_no_line_end(tmp_path: Path) -> None:
    folder = got10k_video(tmp_path)
    (folder / "groundtruth.txt").write_text("1.0000,1.0000,9.0000,9.0000\n5.0000,7.0000,30.0000,40.0000\n-1,-1,-1,-1")
    assert len(read_video(folder).frames) == 3


@pytest.mark.parametrize(
    "description",
    [
        META_INFO[:-1],
        META_INFO.replace(": ", " = "),
        META_INFO.replace("\n", "\n\n"),
        META_INFO.replace("motion_class: swimming", "motion_class:").replace("root_class: animal", "root_class"),
        "object_class: ctenophore",
        "[METAINFO]\nurl = https://example.org\nobject_class=ctenophore",
    ],
)
def test_of_the_description_only_the_object_class_must_be_there(tmp_path: Path, description: str) -> None:
    folder = got10k_video(tmp_path)
    (folder / "meta_info.ini").write_text(description)
    track = read_video(folder)
    assert track.category == "ctenophore"
    assert set(track.metadata.values()) <= {"swimming", "invertebrate", "animal", "slowly", "(1920, 1080)"}


def test_generated_videos_come_back_with_the_boxes_that_were_painted(tmp_path: Path) -> None:
    for split, videos in (("train", 3), ("val", 2)):
        write_got10k(tmp_path, videos, seed=7, split=split, photographs=split)
        tracks = pickle.loads(pickle.dumps(read_got10k(tmp_path, split)))
        read = [tracks.read(entry) for entry in tracks.entries]
        painted = [list(target_frames(VideoSpec(), 7, split, video, traps=False)) for video in range(videos)]
        assert [corners(track) for track in read] == [[frame.target.box.corners for frame in video] for video in painted]
        assert [track.category for track in read] == [video[0].target.shape for video in painted]
        assert [track.id for track in read] == [f"GOT-10k_{split.capitalize()}_{n + 1:06d}" for n in range(videos)]
        assert all(absence is None for track in read for absence in absences(track))


def test_generated_traps_are_those_of_the_format(tmp_path: Path) -> None:
    write_got10k(tmp_path, videos=7, seed=3, traps=True)
    tracks = read_got10k(tmp_path, "train")
    first, last = read_video(tracks.entries[0]), read_video(tracks.entries[6])
    assert absences(first) == [None, "full_occlusion", "absent", None, "unannotated", None, None, None, None]
    # Video 6: frames 7, 8, 0 and 1. It ends with a target that is gone.
    assert absences(last) == [None, "unannotated", None, None, None, None, None, "full_occlusion", "absent"]
    cut = corners(last)[0]
    assert cut is not None and cut[0] < 0 < cut[2]
    assert (tracks.entries[0] / "cut_by_image.label").read_text().split() == list("000100000")


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        write_got10k(tmp_path / name, videos=3, seed=5, traps=True, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

"""The PerSeg reader: boxes of hand-drawn masks, every damage by name, and generated albums back."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.generators.perseg import write_perseg
from data.generators.single_target import target_frames
from data.perseg import read_album, read_perseg
from data.shapes import SHAPES
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec
from data.track import TrackError
from tests.data.track_cases import absences, color_mask, contents, corners, perseg_album

SIZE = (40, 30)


def test_the_box_is_the_masks_bounding_box_and_half_open(tmp_path: Path) -> None:
    masks = [color_mask(SIZE, (3, 4, 10, 20)), color_mask(SIZE, (0, 0, 39, 29)), color_mask(SIZE, (39, 29, 39, 29))]
    track = read_album(perseg_album(tmp_path, masks))
    assert corners(track) == [(3, 4, 11, 21), (0, 0, 40, 30), (39, 29, 40, 30)]
    assert absences(track) == [None, None, None]
    assert {frame.size for frame in track.frames} == {SIZE}
    assert (track.id, track.source, track.video, track.category) == (
        "backpack_dog",
        "perseg",
        "backpack_dog",
        "backpack_dog",
    )
    assert track.frames[1].path == tmp_path / "Images" / "backpack_dog" / "01.jpg"


def test_separate_parts_of_an_object_share_a_box(tmp_path: Path) -> None:
    pixels = np.array(color_mask(SIZE, (3, 4, 5, 6)))
    pixels[25, 30] = (0, 128, 0)
    assert corners(read_album(perseg_album(tmp_path, [Image.fromarray(pixels)]))) == [(3, 4, 31, 26)]


def test_foreground_is_what_is_not_black_in_grey_whatever_the_kind_of_image(tmp_path: Path) -> None:
    dark_blue = color_mask(SIZE, (3, 4, 10, 20), (0, 0, 128))
    palette = Image.fromarray((np.array(dark_blue)[..., 2] == 0).astype(np.uint8), "P")
    palette.putpalette((0, 0, 128, 0, 0, 0))  # the background is number 1 of the palette
    nearly_black = color_mask(SIZE, (3, 4, 10, 20), (1, 1, 1))
    transparent = dark_blue.copy()
    transparent.putalpha(0)
    bilevel = dark_blue.convert("L").point(lambda grey: 255 if grey else 0).convert("1")
    kinds = [dark_blue, palette, dark_blue.convert("L"), bilevel, nearly_black, transparent]
    assert [mask.mode for mask in kinds] == ["RGB", "P", "L", "1", "RGB", "RGBA"]
    assert corners(read_album(perseg_album(tmp_path, kinds))) == [(3, 4, 11, 21)] * 6


def test_a_black_mask_is_an_absent_target(tmp_path: Path) -> None:
    track = read_album(perseg_album(tmp_path, [color_mask(SIZE, None), color_mask(SIZE, (1, 1, 2, 2))]))
    assert corners(track) == [None, (1, 1, 3, 3)]
    assert absences(track) == ["absent", None]


def test_albums_come_sorted_and_hidden_folders_are_left_alone(tmp_path: Path) -> None:
    for name in ("teapot", "cat2", "backpack"):
        perseg_album(tmp_path, [color_mask(SIZE, (1, 1, 2, 2))], name)
    (tmp_path / "Images" / ".DS_Store").touch()
    (tmp_path / "Images" / ".hidden").mkdir()
    (tmp_path / "Images" / "cat2" / "._00.jpg").touch()
    (tmp_path / "Annotations" / "cat2" / "._00.png").touch()
    tracks = pickle.loads(pickle.dumps(read_perseg(tmp_path, "test")))
    assert [tracks.read(entry).id for entry in tracks.entries] == ["backpack", "cat2", "teapot"]


def test_an_album_of_either_half_alone_is_an_error_of_that_album(tmp_path: Path) -> None:
    perseg_album(tmp_path, [color_mask(SIZE, (1, 1, 2, 2))], "cat")
    perseg_album(tmp_path, [color_mask(SIZE, (1, 1, 2, 2))], "dog")
    shutil.rmtree(tmp_path / "Images" / "cat")
    shutil.rmtree(tmp_path / "Annotations" / "dog")
    tracks = read_perseg(tmp_path, "test")
    with pytest.raises(TrackError, match="Images/cat: the folder of images cannot be read"):
        tracks.read(tracks.entries[0])
    with pytest.raises(TrackError, match="Annotations/dog: the folder of masks is missing"):
        tracks.read(tracks.entries[1])


def test_what_is_not_perseg_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="held out and has no split 'train'; choose from test, all"):
        read_perseg(tmp_path, "train")
    with pytest.raises(ValueError, match=r"no folder .*Images; expected the layout <root>/Images/<object>/00.jpg"):
        read_perseg(tmp_path, "test")
    (tmp_path / "Images").mkdir()
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(ValueError, match="no objects under"):
        read_perseg(tmp_path, "test")


def _mask(folder: Path, number: int = 1) -> Path:
    return folder.parent.parent / "Annotations" / folder.name / f"{number:02d}.png"


def _turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(folder / "01.jpg", exif=exif)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _spoil_checksum(path: Path) -> None:
    """The last byte of the pixels' checksum; the closing chunk has twelve bytes."""
    content = bytearray(path.read_bytes())
    content[-13] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "01.jpg").unlink(), r"Images/mug/01.jpg: the image is missing; .*Annotations/mug speaks of 3"),
    (lambda folder: _mask(folder).unlink(), r"Annotations/mug: speaks of 2 images, .* has 02.jpg too"),
    (lambda folder: (folder / "01.jpg").rename(folder / "03.jpg"), r"Images/mug/01.jpg: the image is missing"),
    (lambda folder: (folder / "01.jpg").rename(folder / "1.jpg"), r"Images/mug/01.jpg: the image is missing"),
    (lambda folder: _mask(folder).rename(_mask(folder, 3)), r"Annotations/mug/01.png: the image is missing"),
    (lambda folder: color_mask((30, 40), (1, 1, 2, 2)).save(_mask(folder)), r"01.png: the image is 30×40, .* for 40×30"),
    (_turned, r"Images/mug/01.jpg: stored turned \(EXIF orientation 6\); save it upright"),
    (lambda folder: color_mask(SIZE, (1, 1, 2, 2)).save(_mask(folder), "JPEG"), r"01.png: expected a PNG .* got JPEG RGB"),
    (
        lambda folder: Image.fromarray(np.ones((30, 40), dtype=np.uint16)).save(_mask(folder)),
        r"01.png: expected a PNG in 8-bit colour, palette or grey, got PNG I;16",
    ),
    (lambda folder: _cut(_mask(folder)), r"Annotations/mug/01.png: the image cannot be decoded"),
    (lambda folder: _cut(folder / "01.jpg"), r"Images/mug/01.jpg: the image cannot be decoded"),
    (lambda folder: _spoil_checksum(_mask(folder)), r"Annotations/mug/01.png: the mask is damaged"),
    (lambda folder: _mask(folder).write_bytes(b""), r"Annotations/mug/01.png: the image cannot be decoded"),
    (lambda folder: [_mask(folder, number).unlink() for number in range(3)], r"Annotations/mug: no masks"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_damage_is_named_with_its_file(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    folder = perseg_album(tmp_path, [color_mask(SIZE, (1, 1, 20 + number, 9)) for number in range(3)], "mug")
    damage(folder)
    with pytest.raises(TrackError, match=problem):
        read_album(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_generated_masks_have_the_boxes_that_were_painted(tmp_path: Path, shape: str) -> None:
    spec = VideoSpec(frames=4, scene=SceneSpec(shapes=(shape,)))
    write_perseg(tmp_path, videos=1, seed=7, spec=spec)
    (folder,) = read_perseg(tmp_path, "test").entries
    track, painted = read_album(folder), list(target_frames(spec, 7, "val", 0, traps=False))
    assert track.category == f"{shape}_001"
    assert corners(track) == [frame.target.box.corners for frame in painted]


def test_generated_traps_are_those_of_the_format(tmp_path: Path) -> None:
    write_perseg(tmp_path, videos=1, seed=3, traps=True)
    (folder,) = read_perseg(tmp_path, "all").entries
    track, painted = read_album(folder), list(target_frames(VideoSpec(), 3, "val", 0, traps=True))
    assert absences(track) == [None, "absent", "absent", None, None, None, None, None, None]
    x1, y1, x2, y2 = painted[3].corners
    assert x1 < 0 and corners(track)[3] == (0, y1, x2, y2)
    assert corners(track)[4] == painted[4].corners
    with Image.open(_mask(folder, 0)) as usual, Image.open(_mask(folder, 4)) as palette:
        assert (usual.mode, palette.mode) == ("RGB", "P")
        assert set(usual.get_flattened_data()) == {(0, 0, 0), (128, 0, 0)}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        write_perseg(tmp_path / name, videos=3, seed=5, traps=True, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

"""What is said of image files: their bytes, their size, and one word for what is wrong."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.image_file import ImageFileError, check_image, image_size, load_image

SIZE = (90, 70)
Opener = Callable[[Path, tuple[int, int] | None], object]


def write(path: Path, **options: object) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
def test_a_sound_image(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    content, image = load_image(path, SIZE)
    assert content == path.read_bytes() and image.tobytes() == Image.open(path).tobytes()
    assert check_image(path, SIZE) == check_image(path, None) == (content, SIZE)
    assert image_size(path) == SIZE


@pytest.mark.parametrize("opener", [load_image, check_image])
@pytest.mark.parametrize("size", [SIZE, None])
def test_one_word_for_what_is_wrong(tmp_path: Path, opener: Opener, size: tuple[int, int] | None) -> None:
    path = write(tmp_path / "a.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    for problem, wrong, asked in (
        ("missing_image", tmp_path / "b.jpg", size),
        ("missing_image", tmp_path, size),
        ("missing_image", tmp_path / "\0.jpg", size),
        ("undecodable_image", tmp_path / "text.jpg", size),
        ("size_mismatch", path, (SIZE[1], SIZE[0])),
    ):
        with pytest.raises(ImageFileError) as caught:
            opener(wrong, asked)
        assert caught.value.problem == problem and str(wrong) in str(caught.value)


def test_the_header_alone_gives_the_size_or_the_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-1000])
    assert image_size(path) == SIZE
    for problem, wrong in (("missing_image", tmp_path / "b.jpg"), ("undecodable_image", Path(__file__))):
        with pytest.raises(ImageFileError) as caught:
            image_size(wrong)
        assert caught.value.problem == problem


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_a_jpeg_cut_anywhere_is_found_out_as_by_decoding_it_in_full(tmp_path: Path, options: dict[str, object]) -> None:
    content = write(tmp_path / "whole.jpg", **options).read_bytes()
    path = tmp_path / "cut.jpg"
    found = 0
    for end in [*range(0, len(content), 61), *range(len(content) - 30, len(content))]:
        path.write_bytes(content[:end])
        try:
            Image.open(io.BytesIO(content[:end])).load()
        except OSError:
            found += 1
            with pytest.raises(ImageFileError, match=r"cut\.jpg"):
                check_image(path, SIZE)
        else:
            check_image(path, SIZE)
    assert found > 50


def test_an_image_is_as_it_is_stored_whatever_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write(tmp_path / "a.jpg", exif=exif)
    assert load_image(path, SIZE)[1].size == check_image(path, SIZE)[1] == image_size(path) == SIZE

"""Sample and EncodedImage: what they refuse, and what opening an image checks."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from data.box import Box, Frame
from data.sample import EncodedImage, ImagePart, Sample, TextPart


def jpeg_bytes(width: int = 64, height: int = 48) -> bytes:
    encoded = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(encoded, "JPEG")
    return encoded.getvalue()


def test_an_image_opens_from_bytes_and_from_a_path_alike(tmp_path: Path) -> None:
    content = jpeg_bytes()
    (tmp_path / "a.jpg").write_bytes(content)
    from_bytes = EncodedImage(64, 48, encoded=content).open()
    from_path = EncodedImage(64, 48, path=str(tmp_path / "a.jpg")).open()
    assert from_bytes.mode == "RGB"
    assert from_bytes.tobytes() == from_path.tobytes()


def test_an_image_has_bytes_or_a_path() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        EncodedImage(64, 48)
    with pytest.raises(ValueError, match="exactly one"):
        EncodedImage(64, 48, encoded=b"x", path="y")


def test_opening_names_what_is_wrong(tmp_path: Path) -> None:
    content = jpeg_bytes()
    with pytest.raises(ValueError, match=r"cannot be decoded .*gone\.jpg"):
        EncodedImage(64, 48, path=str(tmp_path / "gone.jpg")).open()
    with pytest.raises(ValueError, match="cannot be decoded"):
        EncodedImage(64, 48, encoded=content[: len(content) // 2]).open()
    with pytest.raises(ValueError, match="64×48, the dataset says 48×64"):
        EncodedImage(48, 64, encoded=content).open()


def test_the_bytes_of_an_image_stay_out_of_messages() -> None:
    assert "encoded" not in repr(EncodedImage(64, 48, encoded=b"\x00" * 1000))


def test_boxes_must_be_in_original_pixels_of_the_target_image() -> None:
    image = EncodedImage(64, 48, path="a.jpg")
    prompt = (ImagePart(0), TextPart("where?"))
    Sample("ok", "test", (image,), prompt, Box(0, 0, 10, 10, image.frame))
    for frame in (Frame.thousandths(), Frame.original(48, 64), Frame.resized(64, 48)):
        with pytest.raises(ValueError, match="sample wrong"):
            Sample("wrong", "test", (image,), prompt, Box(0, 0, 10, 10, frame))
        with pytest.raises(ValueError, match="sample wrong"):
            Sample("wrong", "test", (image,), prompt, Box(0, 0, 9, 9, image.frame), distractors=(Box(0, 0, 10, 10, frame),))


@pytest.mark.parametrize("shown", [(), (0,), (1, 0), (0, 1, 1)])
def test_the_prompt_shows_every_image_once_and_in_order(shown: tuple[int, ...]) -> None:
    image = EncodedImage(64, 48, path="a.jpg")
    prompt = tuple(ImagePart(index) for index in shown)
    with pytest.raises(ValueError, match="the prompt shows images"):
        Sample("wrong", "test", (image, image), prompt, Box(0, 0, 10, 10, image.frame))

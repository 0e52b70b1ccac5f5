"""Prompts: the papers' wording, the order of the parts, and boxes in the family's frame."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.box import Box, Frame
from data.families import FAMILIES, PixelLimits
from data.prompts import (
    FOCUS_PROMPT,
    LOCUS_PROMPT,
    answer_text,
    box_text,
    chat_messages,
    focus_prompt,
    focus_response,
    locus_prompt,
    locus_response,
)
from data.sample import EncodedImage, Sample

SCENE = EncodedImage(640, 480, path="scene.jpg")
CUE = EncodedImage(20, 20, encoded=b"cue")


def locus_sample(**metadata: str) -> Sample:
    return Sample("s", "test", (SCENE, CUE), locus_prompt(), Box(620, 460, 640, 480, SCENE.frame), metadata=metadata)


def test_the_papers_words_do_not_change() -> None:
    """Hashes of the two prompts as printed; whoever rewords one changes the experiment and must change this line."""
    assert LOCUS_PROMPT.startswith("Image 1 is a full scene image. Image 2 is a cropped region from Image 1. Please find")
    assert LOCUS_PROMPT.endswith("i.e., <think> reasoning process here </think><answer> answer here </answer>.")
    assert FOCUS_PROMPT.endswith("in the following format: <answer>[x_min, y_min, x_max, y_max]</answer>")
    digests = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in (LOCUS_PROMPT, FOCUS_PROMPT)]
    assert digests == ["6a47241921d9a311", "05a21a770edb19fa"]


def test_locus_shows_scene_then_cue_then_question() -> None:
    (message,) = chat_messages(locus_sample(), FAMILIES["qwen2_5_vl"])
    assert message["role"] == "user"
    assert message["content"] == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": LOCUS_PROMPT}]


def test_an_answer_is_written_in_the_frame_of_the_family() -> None:
    """By hand: 620 · 644/640 = 623.9, 460 · 476/480 = 456.2; in thousandths 968.75 and 958.3."""
    assert answer_text(locus_sample(), FAMILIES["qwen2_5_vl"]) == "[624, 456, 644, 476]"
    assert answer_text(locus_sample(), FAMILIES["qwen3_vl"]) == "[969, 958, 1000, 1000]"
    # At no more than 28·28·100 pixels 640×480 becomes 308×224: 620 · 308/640 = 298.4, 460 · 224/480 = 214.7.
    assert answer_text(locus_sample(), FAMILIES["qwen2_5_vl"], PixelLimits(3136, 28 * 28 * 100)) == "[298, 215, 308, 224]"


def test_responses() -> None:
    family = FAMILIES["qwen2_vl"]
    assert focus_response(locus_sample(), family) == "<answer>[969, 958, 1000, 1000]</answer>"
    assert (
        locus_response(locus_sample(rationale="a red star"), family)
        == "<think> a red star </think><answer>[969, 958, 1000, 1000]</answer>"
    )
    assert locus_response(locus_sample(), family).startswith("<think> ")


def test_focus_pairs_every_support_with_its_box_in_its_own_frame() -> None:
    wide, tall = EncodedImage(1000, 500, path="wide.jpg"), EncodedImage(500, 1000, path="tall.jpg")
    supports = (Box(100, 100, 200, 200, wide.frame), Box(100, 100, 200, 200, tall.frame))
    sample = Sample("s", "test", (wide, tall, SCENE), focus_prompt(supports), Box(0, 0, 64, 48, SCENE.frame), target_image=2)
    (message,) = chat_messages(sample, FAMILIES["qwen2_vl"])
    assert message["content"] == [
        {"type": "text", "text": FOCUS_PROMPT},
        {"type": "image"},
        {"type": "text", "text": "[100, 200, 200, 400]"},
        {"type": "image"},
        {"type": "text", "text": "[200, 100, 400, 200]"},
        {"type": "image"},
    ]


@given(st.floats(0, 999), st.floats(0, 999), st.floats(1e-3, 500), st.floats(1e-3, 500))
def test_no_box_is_written_empty(x: float, y: float, width: float, height: float) -> None:
    """An object thinner than one unit of the frame must not become an answer that the strict parser refuses."""
    corners = [int(number) for number in box_text(Box.from_xywh(x, y, width, height, Frame.thousandths()))[1:-1].split(", ")]
    assert corners[2] > corners[0] and corners[3] > corners[1]
    assert corners == pytest.approx([x, y, x + width, y + height], abs=1)

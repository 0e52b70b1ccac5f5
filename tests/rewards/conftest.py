"""Samples for the reward tests: one 640×480 scene whose target is easy to reckon with."""

from __future__ import annotations

import pytest

from data.box import Box, Frame
from data.sample import EncodedImage, ImagePart, Sample, TextPart


@pytest.fixture
def sample() -> Sample:
    """Target [64, 48, 128, 96]: a tenth to a fifth of each side, so [100, 100, 200, 200] in thousandths."""
    return Sample(
        id="scene-1",
        source="test",
        images=(EncodedImage(640, 480, encoded=b"not decoded by any reward"),),
        prompt=(ImagePart(0), TextPart("Where?")),
        target=Box(64, 48, 128, 96, Frame.original(640, 480)),
        metadata={"category": "mug"},
    )

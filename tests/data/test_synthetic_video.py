"""Synthetic videos: the same objects in every frame, and close views that show the target large and whole."""

from __future__ import annotations

import numpy as np
import pytest

from data.shapes import COLORS
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec, close_view, render_video, target_views

SCENE = SceneSpec(width=84, height=84, objects=(2, 3), area=(0.08, 0.2), patterns=("plain",), background="plain")


def test_a_video_shows_the_same_objects_elsewhere_in_every_frame() -> None:
    frames = list(render_video(VideoSpec(frames=5, scene=SCENE), 3, "train", 0))
    assert len({tuple((one.shape, one.color) for one in frame.objects) for frame in frames}) == 1
    assert len({one.shape for one in frames[0].objects}) == 1
    assert len({one.color for one in frames[0].objects}) == len(frames[0].objects)
    assert len({frame.objects[0].box.corners for frame in frames}) > 1


def test_close_ups_show_the_target_whole_and_large_and_the_last_frame_as_it_is() -> None:
    spec = VideoSpec(frames=4, scene=SCENE, close_ups=(0.5, 0.7))
    for index in range(8):
        whole = list(render_video(spec, 3, "train", index))
        *close, query = target_views(iter(whole), 1, spec, np.random.default_rng(index))
        assert query is whole[-1]
        for before, frame in zip(whole, close, strict=False):
            x1, y1, x2, y2 = frame.objects[1].box.corners
            assert 0.5 <= max(x2 - x1, y2 - y1) / 84 <= 0.7
            was = before.objects[1].box
            assert (x2 - x1) / (y2 - y1) == pytest.approx((was.x2 - was.x1) / (was.y2 - was.y1))
            assert min(x1, y1) >= 0 and max(x2, y2) <= 84


def test_a_close_views_boxes_are_where_the_objects_are_painted() -> None:
    """The pixel in the middle of the target has its colour; objects that are cut have the box of what is seen."""
    (frame,) = list(render_video(VideoSpec(frames=2, scene=SCENE), 3, "train", 2))[:1]
    view = close_view(frame, 0, 0.6, np.random.default_rng(0))
    target = view.objects[0]
    pixel = np.array(view.image.getpixel(tuple(round(value) for value in target.box.center)), dtype=float)
    assert np.abs(pixel - COLORS[target.color]).max() < 60
    for painted in view.objects:
        visible = painted.box.clip()
        assert visible is None or visible == painted.box


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="close_ups"):
        VideoSpec(close_ups=(0.8, 0.5))
    with pytest.raises(ValueError, match="2 frames"):
        VideoSpec(frames=1)

"""Which frames make an episode: the two rules and the two policies, by hand, against published lists, and as properties."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.box import Box, Frame
from data.episodes import Episode, choose_episode, clip_corners, iploc_frames, keep_absent, paper_frames, skip_absent
from data.track import Absence, Corners, Track, TrackFrame

IMAGE = Frame.original(100, 80)
INSIDE: Corners = (10.0, 10.0, 30.0, 30.0)


def track_of(visible: str, absence: Absence = "out_of_view", corners: Corners | None = INSIDE) -> Track:
    """One frame a character: `x` shows the target; `.` is flagged `absence` and carries `corners`."""
    frames = [TrackFrame(Path("i"), INSIDE if c == "x" else corners, None if c == "x" else absence) for c in visible]
    return Track("t", "made", "v", "cat", tuple(frames))


def boxes_of(track: Track, index: int) -> Box | None:
    return clip_corners(track.frames[index].corners, IMAGE)


def choose(track: Track, shots: int, rule: str = "iploc", policy: str = "skip") -> Episode | str:
    return choose_episode(track, shots, rule, policy, lambda index: boxes_of(track, index))


@pytest.mark.parametrize(
    ("shots", "files"),
    [
        (1, [1, 2788]),
        (2, [1, 1395, 2788]),
        (4, [1, 698, 1395, 2092, 2788]),
        (8, [1, 349, 697, 1045, 1393, 1741, 2089, 2437, 2788]),
    ],
)
def test_the_iploc_rule_gives_the_files_of_the_published_lists(shots: int, files: list[int]) -> None:
    """airplane-1 of IPLoc's LaSOT lists: 2,788 frames, files counted from 1."""
    assert [index + 1 for index in iploc_frames(2788, shots)] == files


def test_the_rules_by_hand() -> None:
    assert iploc_frames(10, 4) == (0, 2, 4, 6, 9)
    assert iploc_frames(5, 4) == paper_frames(5, 4) == (0, 1, 2, 3, 4)
    assert iploc_frames(11, 3) == (0, 3, 6, 10)
    # 9/4 = 2.25, 4.5 (to the even 4), 6.75
    assert paper_frames(10, 4) == (0, 2, 4, 7, 9)
    assert paper_frames(11, 3) == (0, 3, 7, 10)
    assert paper_frames(2788, 4) == (0, 697, 1394, 2090, 2787)


@given(st.integers(1, 12), st.integers(0, 400), st.sampled_from([iploc_frames, paper_frames]))
def test_a_rule_starts_at_the_start_ends_at_the_end_and_never_repeats(shots: int, more: int, rule) -> None:  # type: ignore[no-untyped-def]
    frames = shots + 1 + more
    chosen = rule(frames, shots)
    assert len(chosen) == shots + 1 and chosen[0] == 0 and chosen[-1] == frames - 1
    assert all(one < other for one, other in pairwise(chosen))


@pytest.mark.parametrize(
    ("visible", "frames"),
    [
        ("xxxxxxxxxx", (0, 2, 4, 6, 9)),
        # 4 has neighbours 3 and 5: the earlier.
        ("xxxx.xxxxx", (0, 2, 3, 6, 9)),
        ("xxx..xxxxx", (0, 2, 5, 6, 9)),
        # The start moves forward, the end back.
        (".xxxxxxxx.", (1, 2, 4, 6, 8)),
        # 5 is nearest to 4, and 3 to 2; 6 is taken, so that the support there stays.
        ("xx.x.xxxxx", (0, 1, 3, 6, 9)),
        # The last visible frame is a support's: it becomes the query, and the support moves before it.
        ("xxxxxxx...", (0, 2, 4, 5, 6)),
        # Around 4 only frames beyond its neighbours are left.
        ("xxx...xx.x", (0, 1, 2, 6, 9)),
        ("..x.xxx.x.", (2, 4, 5, 6, 8)),
    ],
)
def test_skip_moves_to_the_nearest_visible_frame(visible: str, frames: tuple[int, ...]) -> None:
    chosen = choose(track_of(visible), 4)
    assert chosen == Episode((0, 2, 4, 6, 9), frames)
    assert isinstance(chosen, Episode) and chosen.moved == len({0, 2, 4, 6, 9} - set(frames))


@pytest.mark.parametrize(("visible", "shots"), [("x.x", 2), ("....", 1), ("x..........", 1), ("xxxx....", 4)])
def test_skip_needs_a_visible_frame_for_every_place(visible: str, shots: int) -> None:
    assert choose(track_of(visible), shots) == "too_few_visible_frames"


@pytest.mark.parametrize("policy", ["skip", "keep"])
@pytest.mark.parametrize(("frames", "shots"), [(4, 4), (1, 1), (0, 1)])
def test_a_track_needs_one_frame_more_than_shots(policy: str, frames: int, shots: int) -> None:
    assert choose(track_of("x" * frames), shots, policy=policy) == "too_few_frames"
    assert isinstance(choose(track_of("x" * (shots + 1)), shots, policy=policy), Episode)


@pytest.mark.parametrize("absence", ["absent", "out_of_view", "full_occlusion", "unannotated"])
def test_every_flag_moves_a_frame_and_none_does_when_kept(absence: Absence) -> None:
    track = track_of("xxxx.xxxxx", absence)
    assert choose(track, 4) == Episode((0, 2, 4, 6, 9), (0, 2, 3, 6, 9))
    assert choose(track, 4, policy="keep") == Episode((0, 2, 4, 6, 9), (0, 2, 4, 6, 9))


UNUSABLE = [None, (10.0, 10.0, 10.0, 30.0), (10.0, 30.0, 30.0, 10.0), (0.0, 0.0, 0.0, 0.0), (-9.0, 5.0, 0.0, 9.0)]
BESIDE: list[Corners] = [(100.0, 5.0, 120.0, 9.0), (5.0, 80.0, 9.0, 99.0), (5.0, -9.0, 9.0, -1.0)]


@pytest.mark.parametrize("corners", [*UNUSABLE, *BESIDE])
def test_a_box_that_covers_nothing_of_the_image_is_no_box(corners: Corners | None) -> None:
    """Without any flag, too."""
    visible = track_of("xxxx.xxxxx", corners=corners)
    frames = [TrackFrame(frame.path, frame.corners) for frame in visible.frames]
    track = Track("t", "made", "v", "cat", tuple(frames))
    assert choose(track, 4) == Episode((0, 2, 4, 6, 9), (0, 2, 3, 6, 9))
    assert choose(track, 4, policy="keep") == "no_usable_box"
    # Frames that are not chosen may be anything.
    assert isinstance(choose(track, 2, policy="keep"), Episode)


def test_a_box_that_leaves_the_image_is_clipped() -> None:
    assert clip_corners((-38.0, 70.0, 12.5, 95.0), IMAGE) == Box(0, 70, 12.5, 80, IMAGE)


@given(st.text("x.", min_size=1, max_size=30), st.integers(1, 6), st.sampled_from(["iploc", "paper"]))
def test_skip_in_general(visible: str, shots: int, rule: str) -> None:
    shown = {index for index, mark in enumerate(visible) if mark == "x"}
    chosen = choose(track_of(visible), shots, rule)
    if len(visible) < shots + 1:
        assert chosen == "too_few_frames"
        return
    if len(shown) < shots + 1:
        assert chosen == "too_few_visible_frames"
        return
    assert isinstance(chosen, Episode)
    assert list(chosen.frames) == sorted(set(chosen.frames)) and len(chosen.frames) == shots + 1
    assert set(chosen.frames) <= shown and chosen.frames[-1] == max(shown)
    # Whoever could stay stayed.
    assert shown.intersection(chosen.wanted) <= set(chosen.frames)


@given(st.integers(6, 40), st.data())
def test_one_absent_frame_gives_way_to_the_nearest(frames: int, data: st.DataObject) -> None:
    wanted = iploc_frames(frames, 4)
    absent = data.draw(st.sampled_from(wanted[:-1]))
    visible = "".join("." if index == absent else "x" for index in range(frames))
    free = sorted(set(range(frames)) - set(wanted), key=lambda index: (abs(index - absent), index))
    expected = sorted({*wanted, free[0]} - {absent})
    assert choose(track_of(visible), 4) == Episode(wanted, tuple(expected))


def test_a_policy_looks_no_further_than_it_must() -> None:
    """Looking can mean opening an image."""
    track = track_of("x" * 500 + "." + "x" * 499)
    looked: list[int] = []

    def box_of(index: int) -> Box | None:
        looked.append(index)
        return boxes_of(track, index)

    assert skip_absent(track, (0, 500, 999), box_of) == (0, 499, 999)
    assert set(looked) == {0, 499, 999}
    looked.clear()
    assert keep_absent(track, (0, 500, 999), box_of) == (0, 500, 999)
    assert set(looked) == {0, 500, 999}

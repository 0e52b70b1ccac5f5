"""Which frames of a track make an episode: K supports, then the query, in the order of the video.

    Track ─► frame rule: the K+1 wanted frames ─► absence policy: what becomes of those without the target ─► Episode

N below counts every frame of the track as it was published, whether or not the target can be seen in it: so do IPLoc's lists
(all 4 × 144 LaSOT episodes they hold follow `iploc_frames` with N the length of the sequence, flagged frames included).
Frames are counted from 0. Nothing here opens an image: a frame's box inside its image comes from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from data.box import Box, Frame
from data.track import Corners, Track

EpisodeDrop = Literal["too_few_frames", "too_few_visible_frames", "no_usable_box"]
# The target's box in frame i, clipped to the image; None where the frame has no usable box.
BoxOf = Callable[[int], Box | None]
FrameRule = Callable[[int, int], tuple[int, ...]]
AbsencePolicy = Callable[[Track, Sequence[int], BoxOf], tuple[int, ...] | EpisodeDrop]


@dataclass(frozen=True, slots=True)
class Episode:
    """Frame indices, ascending, the query last: those that the rule wanted and those that the policy left."""

    wanted: tuple[int, ...]
    frames: tuple[int, ...]

    @property
    def moved(self) -> int:
        """How many wanted frames were replaced by another."""
        return len(set(self.wanted) - set(self.frames))


def choose_episode(track: Track, shots: int, rule: str, policy: str, box_of: BoxOf) -> Episode | EpisodeDrop:
    """The episode of `shots` supports, or why the track has none."""
    if len(track.frames) < shots + 1:
        return "too_few_frames"
    wanted = FRAME_RULES[rule](len(track.frames), shots)
    frames = ABSENCE_POLICIES[policy](track, wanted, box_of)
    return frames if isinstance(frames, str) else Episode(wanted, frames)


def iploc_frames(frames: int, shots: int) -> tuple[int, ...]:
    """IPLoc's lists: supports i·(N//K) for i < K, query N−1.

    N = 2788, K = 4: 0, 697, 1394, 2091 and 2787. N = 10, K = 4: 0, 2, 4, 6 and 9 (the last interval takes the remainder).
    """
    interval = frames // shots
    return (*(support * interval for support in range(shots)), frames - 1)


def paper_frames(frames: int, shots: int) -> tuple[int, ...]:
    """The paper's words, first support at the start, query at the end, equal intervals: round(i·(N−1)/K) for i ≤ K.

    N = 2788, K = 4: 0, 697, 1394, 2090 and 2787. N = 10, K = 4: 0, 2, 4, 7 and 9. Halves round to the even frame (4.5 to 4).
    """
    return tuple(round(place * (frames - 1) / shots) for place in range(shots + 1))


def skip_absent(track: Track, wanted: Sequence[int], box_of: BoxOf) -> tuple[int, ...] | EpisodeDrop:
    """A wanted frame that does not show the target gives way to the nearest one that does, the earlier of two.

    The query settles first, on the last visible frame. Of the supports, those that are visible stay; the others, from the
    start of the video on, take the nearest visible frame before the query that no one has. So every track of K+1 visible
    frames has an episode, and its frames ascend. Wanted 0, 2, 4, 6, 9, the target absent from 4 and 9: 0, 2, 3, 6, 8.
    """

    def visible(index: int) -> bool:
        return track.frames[index].absence is None and box_of(index) is not None

    query = _nearest(wanted[-1], range(len(track.frames)), visible)
    if query is None:
        return "too_few_visible_frames"
    supports = {index for index in wanted[:-1] if index < query and visible(index)}
    for index in wanted[:-1]:
        if index not in supports:
            place = _nearest(index, range(query), lambda near: near not in supports and visible(near))
            if place is None:
                return "too_few_visible_frames"
            supports.add(place)
    return (*sorted(supports), query)


def keep_absent(track: Track, wanted: Sequence[int], box_of: BoxOf) -> tuple[int, ...] | EpisodeDrop:
    """The wanted frames as they are, as published lists have them: a flagged frame counts with the box that it carries.

    An episode with a frame that has no usable box is dropped: there is nothing to show, or nothing to score.
    """
    return tuple(wanted) if all(box_of(index) is not None for index in wanted) else "no_usable_box"


FRAME_RULES: dict[str, FrameRule] = {"iploc": iploc_frames, "paper": paper_frames}
ABSENCE_POLICIES: dict[str, AbsencePolicy] = {"skip": skip_absent, "keep": keep_absent}


def clip_corners(corners: Corners | None, frame: Frame) -> Box | None:
    """What of an annotated box lies inside the image; None where nothing does."""
    return Box(*corners, frame).clip() if corners is not None and has_area(corners) else None


def has_area(corners: Corners) -> bool:
    x1, y1, x2, y2 = corners
    return x2 > x1 and y2 > y1


def _nearest(index: int, places: range, free: Callable[[int], bool]) -> int | None:
    """The free place nearest to `index`, the earlier of two. Looks at no place further out than it must."""
    for distance in range(max(index, places.stop - index) + 1):
        for place in dict.fromkeys((index - distance, index + distance)):
            if place in places and free(place):
                return place
    return None

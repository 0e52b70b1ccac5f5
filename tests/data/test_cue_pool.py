"""Which boxes may become cues, and the seeded choice among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.coco import read_instances
from data.config import LocusConfig, SizeBin
from data.cue_pool import CuePool, Fate, choose, object_pool, quotas, random_pool
from tests.data.coco_files import CocoFolder


def config(**knobs: object) -> LocusConfig:
    return LocusConfig(**{"train_samples": 10, "validation_samples": 0, **knobs})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("samples", "mix", "expected"),
    [
        (99_500, {"tiny": 0.7, "small": 0.3}, {"tiny": 69_650, "small": 29_850}),
        (5, {"tiny": 0.7, "small": 0.3}, {"tiny": 4, "small": 1}),
        (1, {"a": 0.5, "b": 0.5}, {"a": 1, "b": 0}),
        (10, {"tiny": 1.0, "small": 0.0}, {"tiny": 10}),
        (7, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, {"a": 3, "b": 2, "c": 2}),
    ],
)
def test_quotas_by_hand(samples: int, mix: dict[str, float], expected: dict[str, int]) -> None:
    assert quotas(samples, mix) == expected


@given(st.integers(0, 10_000), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_quotas_add_up_and_are_off_by_less_than_one(samples: int, weights: list[int]) -> None:
    mix = {str(index): weight / sum(weights) for index, weight in enumerate(weights)}
    shared = quotas(samples, mix)
    assert sum(shared.values()) == samples
    assert all(abs(shared[name] - samples * mix[name]) < 1 + 1e-6 for name in shared)


@pytest.mark.parametrize(
    ("box", "fate"),
    [
        # On 200×150 = 30,000 px: tiny is under 300 px of area, small 300 to 1,500, large from 3,000.
        ([0, 0, 17, 17], "usable"),  # 289 px
        ([0, 0, 15, 18], "below_min_crop"),
        ([0, 0, 20, 15.9], "below_min_crop"),
        ([0, 0, 30, 10], "below_min_crop"),
        ([0, 0, 20, 20], "usable"),
        ([0, 0, 50, 30], "outside_size_bins"),  # exactly 5 %
        ([0, 0, 50, 50], "outside_size_bins"),
        ([0, 0, 100, 30], "bin_not_in_mix"),  # exactly 10 %: large
        ([0, 0, 200, 150], "bin_not_in_mix"),
        ([0, 0, 200, 1.5], "too_elongated"),
    ],
)
def test_sizes_are_judged_on_the_annotated_box(tmp_path: Path, box: list[float], fate: str) -> None:
    folder = CocoFolder(tmp_path)
    folder.add_image(1)
    folder.add_box(1, box)
    pool = object_pool(read_instances(folder.write()), config())
    assert list(pool.dropped()) == ([] if fate == "usable" else [fate])


def test_excluded_images_are_counted(tmp_path: Path) -> None:
    folder = CocoFolder(tmp_path)
    for image in (1, 2):
        folder.add_image(image)
        folder.add_box(image, [0, 0, 20, 20])
    pool = object_pool(read_instances(folder.write()), config(excluded_images=frozenset({2, 99})))
    assert pool.dropped() == {"excluded_image": 1}
    assert pool.unused == 1


@given(seed=st.integers(0, 50), wanted=st.integers(0, 30), limit=st.none() | st.integers(1, 3))
def test_choice_fills_what_it_can_and_respects_every_limit(seed: int, wanted: int, limit: int | None) -> None:
    rng = np.random.default_rng(seed)
    count, images = 60, 9
    pool = CuePool(
        image_rows=rng.integers(0, images, count),
        boxes=np.zeros((count, 4)),
        shares=np.zeros(count),
        bins=rng.integers(0, 2, count),
        bin_names=("tiny", "small"),
        fates=np.where(rng.random(count) < 0.2, int(Fate.KEPT), 0).astype(np.uint8),
    )
    blocked, used = rng.random(images) < 0.3, rng.integers(0, 2, images)
    rows = choose(pool, rng.permutation(count), {"tiny": wanted, "small": 3}, blocked, used, limit)
    assert len(set(rows.tolist())) == len(rows)
    assert not blocked[pool.image_rows[rows]].any() and (pool.fates[rows] == 0).all()
    assert (np.diff(pool.image_rows[rows]) >= 0).all()
    per_bin = np.bincount(pool.bins[rows], minlength=2)
    open_rows = (pool.fates == 0) & ~blocked[pool.image_rows]
    if limit is None:
        available = np.bincount(pool.bins[open_rows], minlength=2)
        assert per_bin.tolist() == [min(wanted, available[0]), min(3, available[1])]
    else:
        assert (np.bincount(pool.image_rows[rows], minlength=images) + used)[np.unique(pool.image_rows[rows])].max(
            initial=0
        ) <= limit
        assert per_bin[0] <= wanted and per_bin[1] <= 3


def test_random_crops_cover_the_sizes_of_the_mix(tmp_path: Path) -> None:
    folder = CocoFolder(tmp_path)
    for image in range(20):
        folder.add_image(image, 640, 480)
    folder.write()
    knobs = config(source="random_crop", train_samples=1000, mix={"tiny": 0.5, "large": 0.5}, seed=3)
    pool = random_pool(read_instances(folder.annotations), knobs)
    usable = pool.fates == 0
    sides = pool.boxes[:, 2:] - pool.boxes[:, :2]
    assert (pool.boxes[:, :2] >= 0).all() and (pool.boxes[:, 2:] <= [640, 480]).all()
    assert (pool.boxes == np.rint(pool.boxes)).all()
    assert sides[usable].min() >= 16
    for index, name in ((0, "tiny"), (2, "large")):
        shares = (sides.prod(axis=1) / (640 * 480))[usable & (pool.bins == index)]
        assert len(shares) >= 1000, name
        assert shares.min() >= (0.0 if name == "tiny" else 0.1) and shares.max() <= (0.01 if name == "tiny" else 1.0)
    assert len(np.unique(pool.boxes[usable], axis=0)) > 0.9 * usable.sum()


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"mix": {"tiny": 0.7}}, "sum to 1"),
        ({"mix": {"huge": 1.0}}, "unknown size bins"),
        ({"bins": {"a": SizeBin(0, 0.5), "b": SizeBin(0.4, 1)}, "mix": {"a": 1.0}, "augmented_bins": ()}, "overlap"),
        ({"augmented_bins": ("huge",)}, "augmented_bins"),
        ({"scale": (2.0, 0.8)}, "scale"),
        ({"padding": (-0.1, 0.1)}, "padding"),
        ({"min_crop": 0}, "min_crop"),
        ({"train_samples": 0}, "nothing to build"),
        ({"train_samples": -1}, "nothing to build"),
        ({"max_per_image": 0}, "max_per_image"),
        ({"jpeg_quality": 0}, "jpeg_quality"),
        ({"source": "text"}, "object, random_crop"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_knobs_are_refused(knobs: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        config(**knobs)


@pytest.mark.parametrize("bounds", [(0.5, 0.5), (-0.1, 0.5), (0.5, 1.5)])
def test_impossible_bins_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="size bin"):
        SizeBin(*bounds)

"""The synthetic sets of the tiny recipes: made where they are missing, through the official layouts and builders."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data import tiny_sets
from data.sample import SupportBoxPart
from data.store import SampleStore
from data.tiny_sets import TINY_SETS, VideoPart, make_episodes, make_missing
from rl.config import ConfigError, load_recipe


def small(part: str) -> VideoPart:
    made = TINY_SETS["focus"][part]
    assert isinstance(made, partial)
    return replace(made.keywords["part"], videos=3)


@pytest.fixture
def three_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {name: partial(make_episodes, part=small(name)) for name in TINY_SETS["focus"]}
    monkeypatch.setattr(tiny_sets, "TINY_SETS", {**TINY_SETS, "focus": parts})


@pytest.mark.usefixtures("three_videos")
def test_missing_parts_are_made_and_others_left_alone(tmp_path: Path) -> None:
    make_missing("focus", [tmp_path / "focus-tiny" / "train"])
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "focus-tiny" / "train").iterdir())]
    make_missing("focus", [tmp_path / "focus-tiny" / "train", tmp_path / "focus-tiny" / "test"])
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "focus-tiny" / "train").iterdir())] == before
    assert len(SampleStore(tmp_path / "focus-tiny" / "train", split="train")) == 3
    test = SampleStore(tmp_path / "focus-tiny" / "test", split="validation")
    assert sorted(sample.metadata["shots"] for sample in test) == [1, 1, 1, 2, 2, 2, 4, 4, 4]


@pytest.mark.usefixtures("three_videos")
def test_a_query_shows_distractors_and_a_support_is_a_close_view_of_the_target(tmp_path: Path) -> None:
    make_missing("focus", [tmp_path / "focus-tiny" / "held_out"])
    for sample in SampleStore(tmp_path / "focus-tiny" / "held_out", split="validation"):
        assert len(sample.images) == 5 and sample.distractors
        boxes = [part.box for part in sample.prompt if isinstance(part, SupportBoxPart)]
        assert len(boxes) == 4
        assert all(0.4 <= max(box.x2 - box.x1, box.y2 - box.y1) / 84 <= 0.85 for box in boxes)


def test_a_folder_that_is_no_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parts of the synthetic set 'focus' are train, held_out, test"):
        make_missing("focus", [tmp_path / "focus-tiny" / "training"])


def test_folders_of_a_users_own_are_left_to_the_user(tmp_path: Path) -> None:
    make_missing("focus", [tmp_path / "train", tmp_path / "mine"])
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_knows_the_sets() -> None:
    for name in TINY_SETS:
        load_recipe("recipes/locus/tiny.yaml", [f"data.synthetic={name}"])
    with pytest.raises(ConfigError, match="locus, focus"):
        load_recipe("recipes/locus/tiny.yaml", ["data.synthetic=photographs"])

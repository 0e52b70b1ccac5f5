"""Which samples an evaluation asks, and fewer shots derived from more, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.box import Box
from data.build_report import Filled
from data.prompts import FOCUS_PROMPT, focus_prompt, locus_prompt
from data.sample import Sample, SupportBoxPart, TextPart
from data.store_writer import write_samples
from rl.evaluation_sets import EvaluationSet, evaluation_sets, with_shots
from tests.rl.focus_case import brightness, episode
from tests.rl.pictures import png


def supports(sample: Sample) -> list[int]:
    """The numbers of the supports that are shown."""
    return [brightness(image) for image in sample.images[:-1]]


@pytest.mark.parametrize(
    ("has", "shots", "kept"),
    [
        (4, 4, [0, 1, 2, 3]),
        (4, 2, [0, 2]),
        (4, 1, [0]),
        (8, 2, [0, 4]),
        (5, 2, [0, 2]),
        (3, 2, [0, 1]),
        (9, 4, [0, 2, 4, 6]),
    ],
)
def test_fewer_shots_are_the_first_support_and_equal_intervals(has: int, shots: int, kept: list[int]) -> None:
    derived = with_shots(episode(has), shots)
    assert supports(derived) == kept
    boxes = [part for part in derived.prompt if isinstance(part, SupportBoxPart)]
    assert [(part.index, part.box.x1) for part in boxes] == list(enumerate(map(float, kept)))
    assert derived.prompt == focus_prompt(tuple(part.box for part in boxes))


def test_query_target_and_distractors_stay() -> None:
    whole = episode(4)
    derived = with_shots(whole, 2)
    assert derived.target_image == 2 and brightness(derived.images[2]) == 100
    assert (derived.target, derived.distractors, derived.id) == (whole.target, whole.distractors, whole.id)
    assert derived.prompt[0] == TextPart(FOCUS_PROMPT)
    assert derived.metadata == {"shots": 2, "derived_from_shots": 4, "frames": [0, 20, 40]}


def test_more_shots_than_there_are_cannot_be_derived() -> None:
    with pytest.raises(ValueError, match="has 2 supports; 4 cannot"):
        with_shots(episode(2), 4)


def asked(folder: Path, *samples: Sample, **options: object) -> list[EvaluationSet]:
    write_samples(folder, {"validation": list(samples)})
    settings = {"folders": [(None, str(folder))], "split": "validation", "shots": None, "limit": None}
    return evaluation_sets(**(settings | options))  # type: ignore[arg-type]


def test_a_shot_count_that_the_dataset_has_is_taken_and_another_derived_from_the_largest(tmp_path: Path) -> None:
    sets = asked(tmp_path / "set", episode(1, "a"), episode(4, "a"), episode(1, "b"), episode(4, "b"))
    assert [(one.shots, one.derived_from, [sample.id for sample in one]) for one in sets] == [
        (1, None, ["tao/a@1", "tao/b@1"]),
        (2, 4, ["tao/a@4", "tao/b@4"]),
        (4, None, ["tao/a@4", "tao/b@4"]),
    ]
    assert supports(sets[1][0]) == [0, 2]
    assert [one.max_images for one in sets] == [2, 5, 5]


def test_without_shots_it_asks_as_many_as_there_are(tmp_path: Path) -> None:
    assert [one.shots for one in asked(tmp_path / "set", episode(2))] == [1, 2]


def test_a_listed_record_that_lacks_a_support_stays_with_its_shots(tmp_path: Path) -> None:
    """A 2-shot list whose second record has one usable support: 1-shot is derived from both."""
    whole, short = episode(2, "whole"), episode(1, "short")
    short = replace(short, metadata=short.metadata | {"shots": 2, "dropped_supports": [0]})
    one, two = asked(tmp_path / "set", whole, short)
    assert (two.shots, two.derived_from, [supports(sample) for sample in two]) == (2, None, [[0, 1], [0]])
    assert (one.shots, one.derived_from, [supports(sample) for sample in one]) == (1, 2, [[0], [0]])


def test_more_shots_are_derived_from_a_record_as_far_as_it_has_them(tmp_path: Path) -> None:
    short = episode(1)
    short = replace(short, metadata=short.metadata | {"shots": 4})
    (two,) = asked(tmp_path / "set", episode(4), short, shots=(2,))
    assert [supports(sample) for sample in two] == [[0, 2], [0]]


def test_a_list_says_how_many_of_its_records_could_be_asked(tmp_path: Path) -> None:
    listed = replace(episode(2, source="iploc"), metadata={"shots": 2, "frames": [0, 1, 2]})
    one, two = asked(tmp_path / "set", listed)
    assert one.listed() is None
    splits = {"validation": {"iploc, 2-shot": {"wanted": 144, "kept": 138}, "tao, 2-shot": {"wanted": 9, "kept": 9}}}
    (tmp_path / "set" / "build.json").write_text(json.dumps({"splits": splits}))
    assert one.listed() == two.listed() == Filled(wanted=144, kept=138)


def test_sources_are_datasets_unless_the_folder_is_given_a_name(tmp_path: Path) -> None:
    samples = [episode(1, source="tao"), episode(1, source="got10k"), episode(1, "other", source="tao")]
    sets = asked(tmp_path / "set", *samples, shots=(1,))
    assert [(one.dataset, len(one), one.title) for one in sets] == [("tao", 2, "tao 1-shot"), ("got10k", 1, "got10k 1-shot")]
    named = evaluation_sets([("Joint", str(tmp_path / "set"))], "validation", (1,), limit=2)
    assert [(one.dataset, [sample.source for sample in one]) for one in named] == [("Joint", ["tao", "got10k"])]


def test_samples_without_supports_have_no_shots(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = (png(rng, 56, 56), png(rng, 28, 28))
    locus = Sample("l", "locus", images, locus_prompt(), Box(1, 2, 20, 30, images[0].frame))
    (only,) = asked(tmp_path / "set", locus)
    assert (only.shots, only.title, only[0]) == (None, "locus", locus)
    with pytest.raises(ValueError, match="samples without supports; leave shots= out"):
        evaluation_sets([(None, str(tmp_path / "set"))], "validation", (1,), None)


def test_what_a_dataset_cannot_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot give 8 shots: it has samples of at most 4 shots"):
        asked(tmp_path / "set", episode(4), shots=(4, 8))
    with pytest.raises(ValueError, match="no 'train' split"):
        evaluation_sets([(None, str(tmp_path / "set"))], "train", None, None)

"""The FOCUS builder on tracks made by hand and on generated datasets: samples, splits, damage, and a full account."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.box import Box, Frame
from data.families import FAMILIES
from data.focus import build_focus
from data.focus_config import FocusConfig, Source
from data.focus_report import FocusReport
from data.generators.burst import write_burst
from data.generators.got10k import write_got10k
from data.generators.lasot import write_lasot
from data.generators.perseg import write_perseg
from data.generators.tao import write_tao
from data.prompts import FOCUS_PROMPT, chat_messages, focus_prompt
from data.readers import READERS
from data.sample import Sample, TextPart
from data.store import SampleStore, shard_paths
from data.store_writer import write_samples
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec
from data.track import Track, TrackError, TrackFrame, TrackList

SIZE = (40, 30)
SMALL = VideoSpec(frames=9, scene=SceneSpec(width=56, height=56, objects=(2, 2)))


def write_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path.name))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def make_track(root: Path, name: str, frames: int = 10, category: str = "cat", video: str | None = None) -> Track:
    """The box of frame i is (i, i + 1, i + 10, i + 12); images are JPEG."""
    made = [
        TrackFrame(write_image(root / name / f"{index}.jpg"), (index, index + 1, index + 10, index + 12), size=SIZE)
        for index in range(frames)
    ]
    return Track(name, "made", video or name, category, tuple(made), {"note": "kept"})


def change(track: Track, index: int, **what: Any) -> Track:
    frames = list(track.frames)
    frames[index] = replace(frames[index], **what)
    return replace(track, frames=tuple(frames))


def read_entry(entry: Track | Exception) -> Track:
    if isinstance(entry, Exception):
        raise entry
    return entry


Builds = Callable[..., FocusReport]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """Builds tracks as the split `split` of a dataset "made" whose images are under tmp_path/made, into tmp_path/out."""

    def build_tracks(tracks: list[Any], split: str = "train", out: str = "out", **knobs: Any) -> FocusReport:
        monkeypatch.setitem(READERS, "made", lambda root, split: TrackList(tracks, read_entry))
        sources = [Source("made", split, tmp_path / "made")]
        report = build_focus(sources, tmp_path / out, FocusConfig(**knobs), overwrite=True)
        assert report.kept + report.unused + sum(report.dropped.values()) == report.records
        return report

    return build_tracks


def samples_of(out: Path, split: str = "train") -> list[Sample]:
    return list(SampleStore(out, split))


def test_a_sample_by_hand(tmp_path: Path, build: Builds) -> None:
    frame = Frame.original(*SIZE)
    track = make_track(tmp_path / "made", "one")
    track = change(track, 0, corners=(-5, 2, 8, 40))
    track = change(track, 9, others=((1, 2, 3, 4), (38, 20, 50, 25), (40, 0, 50, 9), (5, 5, 5, 9)))
    build([track], shots=(4,))
    (sample,) = samples_of(tmp_path / "out")
    assert (sample.id, sample.source, sample.target_image) == ("made/one@4", "made", 4)
    supports = ((0, 2, 8, 30), (2, 3, 12, 14), (4, 5, 14, 16), (6, 7, 16, 18))
    assert sample.prompt == focus_prompt(tuple(Box(*corners, frame) for corners in supports))
    assert sample.target == Box(9, 10, 19, 21, frame)
    assert sample.distractors == (Box(1, 2, 3, 4, frame), Box(38, 20, 40, 25, frame))
    for image, index in zip(sample.images, (0, 2, 4, 6, 9), strict=True):
        assert image.path is not None and Path(image.path).samefile(track.frames[index].path)
        assert image.open().size == SIZE
    assert sample.metadata == {
        "dataset": "made",
        "split": "train",
        "track": "one",
        "video": "one",
        "category": "cat",
        "shots": 4,
        "frame_rule": "iploc",
        "absence_policy": "skip",
        "frames": [0, 2, 4, 6, 9],
        "wanted_frames": [0, 2, 4, 6, 9],
        "moved_frames": 0,
        "absences": [None] * 5,
        "annotation": {"note": "kept"},
        "distractors": 2,
    }


def test_the_category_is_never_in_the_prompt(tmp_path: Path, build: Builds) -> None:
    build([make_track(tmp_path / "made", "one", category="zeppelin")], shots=(1, 2))
    for sample in samples_of(tmp_path / "out"):
        assert [part.text for part in sample.prompt if isinstance(part, TextPart)] == [FOCUS_PROMPT]
        for family in FAMILIES.values():
            assert "zeppelin" not in json.dumps(chat_messages(sample, family))


def test_several_shot_counts_come_from_every_track(tmp_path: Path, build: Builds) -> None:
    report = build([make_track(tmp_path / "made", name) for name in ("one", "two")], shots=(1, 2, 4))
    samples = samples_of(tmp_path / "out")
    assert [sample.id for sample in samples] == [f"made/{name}@{shots}" for name in ("one", "two") for shots in (1, 2, 4)]
    assert [sample.metadata["shots"] for sample in samples[:3]] == [1, 2, 4]
    assert [sample.metadata["frames"] for sample in samples[:3]] == [[0, 9], [0, 5, 9], [0, 2, 4, 6, 9]]
    assert (report.tracks, report.records, report.kept) == (2, 6, 6)


def test_the_rule_can_be_the_papers(tmp_path: Path, build: Builds) -> None:
    build([make_track(tmp_path / "made", "one")], frame_rule="paper")
    (sample,) = samples_of(tmp_path / "out")
    assert sample.metadata["frames"] == [0, 2, 4, 7, 9] and sample.metadata["frame_rule"] == "paper"


def test_policies_are_stated_and_moves_are_counted(tmp_path: Path, build: Builds) -> None:
    track = change(make_track(tmp_path / "made", "one"), 4, absence="out_of_view")
    track = change(track, 9, absence="full_occlusion")
    skipped = build([track])
    (sample,) = samples_of(tmp_path / "out")
    assert sample.metadata["frames"] == [0, 2, 3, 6, 8] and sample.metadata["wanted_frames"] == [0, 2, 4, 6, 9]
    assert sample.target.corners == (8, 9, 18, 20)
    assert sample.metadata["moved_frames"] == skipped.moved_frames == 2
    kept = build([track], absence_policy="keep")
    (sample,) = samples_of(tmp_path / "out")
    assert sample.metadata["frames"] == [0, 2, 4, 6, 9] and kept.moved_frames == 0
    assert sample.metadata["absences"] == [None, None, "out_of_view", None, "full_occlusion"]
    written = json.loads((tmp_path / "out" / "build.json").read_text())
    assert written["config"]["absence_policy"] == sample.metadata["absence_policy"] == "keep"


def test_a_box_beside_an_image_of_unstated_size_moves_the_frame(tmp_path: Path, build: Builds) -> None:
    """Its size is known from the image alone."""
    track = change(make_track(tmp_path / "made", "one"), 4, corners=(40, 5, 60, 9), size=None)
    build([track])
    (sample,) = samples_of(tmp_path / "out")
    assert sample.metadata["frames"] == [0, 2, 3, 6, 9]
    report = build([track, make_track(tmp_path / "made", "two")], absence_policy="keep")
    assert report.dropped == {"no_usable_box": 1}


def test_drops_have_reasons(tmp_path: Path, build: Builds) -> None:
    hidden = make_track(tmp_path / "made", "hidden")
    for index in range(6):
        hidden = change(hidden, index, absence="absent")
    tracks = [make_track(tmp_path / "made", "short", frames=4), hidden, make_track(tmp_path / "made", "fine")]
    report = build(tracks, shots=(1, 4))
    assert report.dropped == {"too_few_frames": 1, "too_few_visible_frames": 1}
    kept = [sample.id for sample in samples_of(tmp_path / "out")]
    assert kept == ["made/short@1", "made/hidden@1", "made/fine@1", "made/fine@4"]


def test_images_can_be_inside_as_the_bytes_of_their_files(tmp_path: Path, build: Builds) -> None:
    track = make_track(tmp_path / "made", "one")
    build([track], image_storage="bytes")
    (sample,) = samples_of(tmp_path / "out")
    encoded = [image.encoded for image in sample.images]
    assert encoded == [track.frames[index].path.read_bytes() for index in (0, 2, 4, 6, 9)]


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def resize(path: Path) -> None:
    write_image(path, (SIZE[1], SIZE[0]))


def empty(path: Path) -> None:
    path.write_bytes(b"")


IMAGE_DAMAGE = [
    (remove, "missing_image"),
    (cut, "undecodable_image"),
    (empty, "undecodable_image"),
    (resize, "size_mismatch"),
]


@pytest.mark.parametrize(("damage", "problem"), IMAGE_DAMAGE)
@pytest.mark.parametrize("index", [0, 4, 9])
def test_an_image_that_cannot_serve_drops_its_track(
    tmp_path: Path, build: Builds, damage: Callable[[Path], None], problem: str, index: int
) -> None:
    """At all shot counts, so that 1, 2 and 4 shots show the same tracks."""
    track = make_track(tmp_path / "made", "bad")
    damage(track.frames[index].path)
    report = build([track, make_track(tmp_path / "made", "fine")], shots=(1, 4))
    assert [sample.id for sample in samples_of(tmp_path / "out")] == ["made/fine@1", "made/fine@4"]
    assert report.dropped == {"damaged": 2} and report.images == {problem: 1} and report.damaged_tracks == 1
    assert str(track.frames[index].path) in report.damage[0]


@pytest.mark.parametrize("damage", [remove, cut, empty])
def test_an_image_of_unstated_size_is_checked_too(tmp_path: Path, build: Builds, damage: Callable[[Path], None]) -> None:
    track = change(make_track(tmp_path / "made", "bad"), 4, size=None)
    damage(track.frames[4].path)
    report = build([track, make_track(tmp_path / "made", "fine")])
    assert report.dropped == {"damaged": 1} and str(track.frames[4].path) in report.damage[0]


def test_images_that_no_episode_shows_do_not_matter(tmp_path: Path, build: Builds) -> None:
    track = make_track(tmp_path / "made", "one")
    for index in (1, 3, 5, 7, 8):
        track.frames[index].path.unlink()
    assert build([track]).dropped == {}


def test_an_image_counts_as_it_is_stored_whatever_its_exif_says(tmp_path: Path, build: Builds) -> None:
    """Boxes are in pixels of the stored image, which `EncodedImage.open` gives too."""
    track = make_track(tmp_path / "made", "one")
    for number, index in enumerate((0, 9)):
        path = track.frames[index].path
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).copy().save(path, exif=exif)
        track = change(track, index, size=SIZE if number else None)
    build([track], shots=(1,))
    (sample,) = samples_of(tmp_path / "out")
    for image in sample.images:
        assert (image.width, image.height) == image.open().size == SIZE
    turned = change(track, 0, size=(SIZE[1], SIZE[0]))
    assert build([turned, make_track(tmp_path / "made", "fine")]).images == {"size_mismatch": 1}


def test_damaged_tracks_are_told_and_the_first_messages_kept(tmp_path: Path, build: Builds) -> None:
    entries: list[Any] = [TrackError(f"file{number}.txt:3: broken") for number in range(25)]
    report = build([*entries, make_track(tmp_path / "made", "fine")], shots=(1, 2))
    assert report.dropped == {"damaged": 50} and report.damaged_tracks == 25
    written = json.loads((tmp_path / "out" / "build.json").read_text())
    assert written["damage"] == [f"file{number}.txt:3: broken" for number in range(20)]


def test_strict_stops_at_the_first_damage(tmp_path: Path, build: Builds) -> None:
    fine, bad = (make_track(tmp_path / "made", name) for name in ("fine", "bad"))
    with pytest.raises(TrackError, match=r"file\.txt: broken"):
        build([fine, TrackError("file.txt: broken")], strict=True)
    bad.frames[9].path.unlink()
    with pytest.raises(TrackError, match=r"9\.jpg"):
        build([fine, bad], strict=True)
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_an_error_with_reasons(tmp_path: Path, build: Builds) -> None:
    with pytest.raises(ValueError, match=r"not one sample.*too_few_frames 1.*a\.txt: broken"):
        build([make_track(tmp_path / "made", "short", frames=3), TrackError("a.txt: broken")])
    assert not (tmp_path / "out").exists()


def test_other_exceptions_come_out(tmp_path: Path, build: Builds) -> None:
    """A mistake in a reader is no damaged track."""
    with pytest.raises(KeyError):
        build([KeyError("x"), make_track(tmp_path / "made", "fine")])


@pytest.mark.parametrize(
    ("split", "knobs", "written"),
    [
        ("train", {}, "train"),
        ("val", {}, "validation"),
        ("validation", {}, "validation"),
        ("test", {}, "validation"),
        ("test", {"output_split": "train"}, "train"),
        ("train", {"output_split": "validation"}, "validation"),
    ],
)
def test_output_splits(tmp_path: Path, build: Builds, split: str, knobs: dict[str, Any], written: str) -> None:
    build([make_track(tmp_path / "made", "one")], split=split, **knobs)
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == [f"{written}-00000.parquet"]
    assert samples_of(tmp_path / "out", written)[0].metadata["split"] == split


def test_validation_videos_are_a_tenth_of_the_training_videos(tmp_path: Path, build: Builds) -> None:
    """Of videos, not of tracks: video v has two tracks."""
    tracks = [
        make_track(tmp_path / "made", f"{number}{part}", frames=3, video=f"v{number}")
        for number in range(20)
        for part in "ab"
    ]
    chosen = {}
    for seed in (0, 0, 1):
        report = build(tracks, shots=(1, 2), validation_fraction=0.1, seed=seed)
        videos = {
            split: {s.metadata["video"] for s in samples_of(tmp_path / "out", split)} for split in ("train", "validation")
        }
        assert (len(videos["train"]), len(videos["validation"])) == (18, 2)
        assert not videos["train"] & videos["validation"]
        assert report.contents["validation"].videos == 2 and len(samples_of(tmp_path / "out", "validation")) == 8
        assert chosen.setdefault(seed, videos) == videos
    assert chosen[0] != chosen[1]


def test_validation_needs_training_videos(tmp_path: Path, build: Builds) -> None:
    track = make_track(tmp_path / "made", "one")
    with pytest.raises(ValueError, match="made:test has none"):
        build([track], split="test", validation_fraction=0.1)
    with pytest.raises(ValueError, match="made:train has 1 videos: 10% of them for validation leaves none"):
        build([track], validation_fraction=0.1)


def test_categories_can_be_chosen(tmp_path: Path, build: Builds) -> None:
    tracks = [make_track(tmp_path / "made", name, category=name) for name in ("Guinea_Pig", "dog", "car")]
    report = build(tracks, categories=frozenset({"guinea pig", "DOG"}), excluded_categories=frozenset({"dog"}))
    assert [sample.metadata["category"] for sample in samples_of(tmp_path / "out")] == ["Guinea_Pig"]
    assert report.dropped == {"category_not_wanted": 2}
    assert report.contents["train"].categories == ("Guinea_Pig",)


def test_a_wanted_category_of_no_track_is_an_error_and_an_excluded_one_is_told(tmp_path: Path, build: Builds) -> None:
    tracks = [make_track(tmp_path / "made", name, category=name) for name in ("Guinea_Pig", "dog", "car")]
    with pytest.raises(ValueError, match=r"the wanted categories giunea pig; nearest are Guinea_Pig"):
        build(tracks, categories=frozenset({"giunea pig", "dog"}))
    report = build(tracks, excluded_categories=frozenset({"CAR", "unicorn"}))
    assert report.unmatched_exclusions == ("unicorn",) and report.dropped == {"category_not_wanted": 1}
    assert json.loads((tmp_path / "out" / "build.json").read_text())["unmatched_exclusions"] == ["unicorn"]


def test_categories_in_both_splits_are_counted(tmp_path: Path, build: Builds) -> None:
    """One of four videos is for validation; of the categories, only that of all four can be in both."""
    tracks = [make_track(tmp_path / "made", str(n), category="cat" if n else "Cat") for n in range(4)]
    report = build(tracks, validation_fraction=0.25)
    assert report.shared_categories == ("cat",)
    assert build(tracks).shared_categories == ()


def test_tao_and_permirs_share_their_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def track(source: str, category: str, video: str = "val/YFCC100M/v_1") -> Track:
        return replace(make_track(tmp_path / source, category, category=category, video=video), source=source)

    tracks = {"tao": [track("tao", "cat")], "permirs": [track("permirs", "dog"), track("permirs", "cow", "val/BDD/v_2")]}
    for name, listed in tracks.items():
        monkeypatch.setitem(READERS, name, lambda root, split, listed=listed: TrackList(listed, read_entry))
    build_focus([Source("tao", "train", tmp_path)], tmp_path / "tao-set", FocusConfig())
    disjoint = FocusConfig(disjoint_from=(tmp_path / "tao-set",), on_overlap="drop")
    report = build_focus([Source("permirs", "val", tmp_path)], tmp_path / "out", disjoint)
    assert report.dropped == {"video_overlap": 1}
    with pytest.raises(ValueError, match=r"1 videos \(val/YFCC100M/v_1\)"):
        build_focus([Source("permirs", "val", tmp_path)], tmp_path / "no", replace(disjoint, on_overlap="fail"))
    with pytest.raises(ValueError, match="video val/YFCC100M/v_1 of permirs would serve both splits"):
        build_focus([Source("tao", "train", tmp_path), Source("permirs", "val", tmp_path)], tmp_path / "no", FocusConfig())


def test_disjointness_is_checked(tmp_path: Path, build: Builds) -> None:
    root = tmp_path / "made"
    build([make_track(root, "a", category="cat", video="v1"), make_track(root, "b", category="dog")], out="other")
    shared_category = make_track(root, "c", category="CAT")
    shared_video = make_track(root, "d", category="bird", video="v1")
    fine = make_track(root, "e", category="cow")
    other = (tmp_path / "other",)
    with pytest.raises(ValueError, match=r"1 categories \(CAT\) and 1 videos \(v1\)"):
        build([shared_category, shared_video, fine], disjoint_from=other)
    assert not (tmp_path / "out").exists()
    report = build([shared_category, shared_video, fine], disjoint_from=other, on_overlap="drop")
    assert report.dropped == {"category_overlap": 1, "video_overlap": 1}
    assert [sample.id for sample in samples_of(tmp_path / "out")] == ["made/e@4"]
    excluded = build([shared_category, fine], disjoint_from=other, excluded_categories=frozenset({"cat"}))
    assert excluded.dropped == {"category_not_wanted": 1}


def test_disjointness_of_what_cannot_be_compared_is_an_error(tmp_path: Path, build: Builds) -> None:
    track = make_track(tmp_path / "made", "one")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="is not a dataset folder"):
        build([track], disjoint_from=(tmp_path / "nothing",))
    build([track], out="named")
    write_samples(tmp_path / "unnamed", {"train": [replace(samples_of(tmp_path / "named")[0], metadata={})]})
    with pytest.raises(ValueError, match="names no category"):
        build([track], disjoint_from=(tmp_path / "unnamed",))


def test_a_track_that_comes_twice_is_an_error(tmp_path: Path, build: Builds) -> None:
    track = make_track(tmp_path / "made", "one")
    with pytest.raises(ValueError, match="track one comes twice, from made:train and made:train"):
        build([track, track])


def test_a_video_of_two_sources_serves_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracks = {split: [make_track(tmp_path / split, split, video="v")] for split in ("train", "test")}
    monkeypatch.setitem(READERS, "made", lambda root, split: TrackList(tracks[split], read_entry))
    sources = [Source("made", split, tmp_path / split) for split in ("train", "test")]
    with pytest.raises(ValueError, match="video v of made would serve both splits"):
        build_focus(sources, tmp_path / "out", FocusConfig())
    build_focus(sources, tmp_path / "out", FocusConfig(output_split="train"))
    assert [sample.id for sample in samples_of(tmp_path / "out")] == ["made/train@4", "made/test@4"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """Every dataset in its official layout, with every trap its generator knows."""
    root = tmp_path_factory.mktemp("datasets")
    write_tao(root / "tao", 11, 0, "train", "train", SMALL, traps=True)
    write_lasot(root / "lasot", 8, 0, "train", "train", SMALL, traps=True)
    write_lasot(root / "lasot", 2, 0, "test", "val", SMALL)
    write_got10k(root / "got10k", 8, 0, "train", "train", SMALL, traps=True)
    write_perseg(root / "perseg", 4, 0, "val", SMALL)
    write_burst(root / "permirs", 8, 0, "val", "val", SMALL, traps=True)
    splits = {"tao": "train", "lasot": "train", "got10k": "train", "perseg": "test", "permirs": "val"}
    return {name: Source(name, split, root / name) for name, split in splits.items()}


@pytest.mark.parametrize("policy", ["skip", "keep"])
@pytest.mark.parametrize("name", ["tao", "lasot", "got10k", "perseg", "permirs"])
def test_every_dataset_builds_and_its_samples_agree_with_its_tracks(
    trees: dict[str, Source], tmp_path: Path, name: str, policy: str
) -> None:
    source = trees[name]
    config = FocusConfig(shots=(1, 2, 4), absence_policy=policy, output_split="train")
    report = build_focus([source], tmp_path / "out", config)
    assert report.kept + sum(report.dropped.values()) == report.records
    tracks = {}
    listed = READERS[name](source.root, source.split)
    for entry in listed.entries:
        track = listed.read(entry)
        tracks[track.id] = track
    for sample in samples_of(tmp_path / "out"):
        track = tracks[sample.metadata["track"]]
        shown = [track.frames[index] for index in sample.metadata["frames"]]
        assert [Path(image.path or "").resolve() for image in sample.images] == [frame.path.resolve() for frame in shown]
        assert policy == "keep" or all(frame.absence is None for frame in shown)
        assert shown[-1].corners is not None
        x1, y1, x2, y2 = shown[-1].corners
        width, height = sample.images[-1].open().size
        assert sample.target.corners == (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))


def test_what_a_reader_leaves_out_and_what_it_read_are_in_the_account(trees: dict[str, Source], tmp_path: Path) -> None:
    """Of eight trapped videos of two objects, 0 and 1 have no siblings and 5 is LaSOT's; each is two episodes."""
    source = trees["permirs"]
    report = build_focus([source], tmp_path / "out", FocusConfig(shots=(1, 2)))
    assert (report.dropped["from_LaSOT"], report.dropped["without_sibling"]) == (2, 4)
    assert (report.tracks, report.records, report.kept) == (8, 16, 10)
    assert list(report.source_sha256) == [str(source.root.resolve() / "annotations" / "val" / "all_classes.json")]


@pytest.mark.parametrize(
    ("name", "file"), [("tao", "annotations/train.json"), ("lasot", "testing_set.txt"), ("got10k", "train/list.txt")]
)
def test_files_of_all_tracks_are_hashed(trees: dict[str, Source], tmp_path: Path, name: str, file: str) -> None:
    path = trees[name].root.resolve() / file
    report = build_focus([trees[name]], tmp_path / "out", FocusConfig(shots=(1,)))
    assert report.source_sha256 == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}


def test_one_damaged_video_of_tao_drops_that_video(tmp_path: Path) -> None:
    write_tao(tmp_path / "tao", 3, 0, "train", "train", SMALL)
    file = tmp_path / "tao" / "annotations" / "train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 10**9
    file.write_text(json.dumps(content))
    report = build_focus([Source("tao", "train", tmp_path / "tao")], tmp_path / "out", FocusConfig())
    assert report.dropped == {"damaged": 1} and report.kept == 2
    assert "annotation number 0: there is no image 1000000000" in report.damage[0]


def test_a_joint_set_is_the_same_with_any_number_of_workers(trees: dict[str, Source], tmp_path: Path) -> None:
    sources = [trees["tao"], trees["lasot"], trees["perseg"]]
    config = FocusConfig(shots=(1, 4), validation_fraction=0.1)
    calls: list[tuple[str, int, int]] = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        report = build_focus(sources, out, config, workers, progress=lambda *call: calls.append(call))
    assert report.sources == ("tao:train", "lasot:train", "perseg:test")
    for name in ("train-00000.parquet", "validation-00000.parquet", "build.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert {sample.source for sample in samples_of(tmp_path / "1")} == {"tao", "lasot"}
    assert {sample.source for sample in samples_of(tmp_path / "1", "validation")} == {"tao", "lasot", "perseg"}
    assert all(image.open() for sample in samples_of(tmp_path / "1") for image in sample.images)
    assert {call[0] for call in calls} == {"reading tracks", "train", "validation"}
    assert all(0 < done <= total for _, done, total in calls)


def test_validation_videos_of_a_source_do_not_depend_on_the_others(trees: dict[str, Source], tmp_path: Path) -> None:
    config = FocusConfig(validation_fraction=0.3)
    build_focus([trees["tao"]], tmp_path / "alone", config)
    build_focus([trees["lasot"], trees["tao"]], tmp_path / "joint", config)
    alone = {sample.id for sample in samples_of(tmp_path / "alone", "validation")}
    joint = {sample.id for sample in samples_of(tmp_path / "joint", "validation") if sample.source == "tao"}
    assert alone == joint and len(alone) == 3


def test_a_dataset_moves_with_its_images(trees: dict[str, Source], tmp_path: Path) -> None:
    """Image paths are stored from the dataset's root on."""
    build_focus([trees["tao"]], tmp_path / "out", FocusConfig())
    assert shard_paths(tmp_path / "out", "train")
    sample = SampleStore(tmp_path / "out", "train", image_root=tmp_path / "elsewhere")[0]
    assert str(sample.images[0].path).startswith(str(tmp_path / "elsewhere" / "frames" / "train"))


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"shots": ()}, "shots must be"),
        ({"shots": (1, 1)}, "shots must be"),
        ({"shots": (0,)}, "shots must be"),
        ({"frame_rule": "first"}, "frame_rule must be one of iploc, paper"),
        ({"absence_policy": "drop"}, "absence_policy must be one of skip, keep"),
        ({"validation_fraction": 1.0}, "validation_fraction must be in"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        FocusConfig(**knobs)


def test_an_unknown_dataset_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no reader of 'coco'; choose from got10k, .*lasot"):
        build_focus([Source("coco", "train", tmp_path)], tmp_path / "out", FocusConfig())

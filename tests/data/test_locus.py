"""The LOCUS builder end to end on small COCO folders: what a cue is, which are made, and that nothing goes uncounted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.box import iou
from data.build_report import BuildReport
from data.config import LocusConfig, SizeBin
from data.locus import build_locus, describe
from data.sample import Sample
from data.store import SampleStore
from data.synthetic import write_coco
from tests.data.coco_files import CocoFolder, many_scenes

# The test scenes are small: what counts as tiny here is up to 4 % of the image.
BINS = {"tiny": SizeBin(0.0, 0.04), "small": SizeBin(0.04, 0.12)}


def config(**knobs: object) -> LocusConfig:
    return LocusConfig(**{"train_samples": 40, "validation_samples": 10, "bins": BINS, **knobs})  # type: ignore[arg-type]


def build(folder: CocoFolder, out: Path, workers: int = 1, **knobs: object) -> BuildReport:
    return build_locus(folder.annotations, folder.images, out, config(**knobs), workers)


def accounts_add_up(report: BuildReport) -> bool:
    return report.kept + report.unused + sum(report.dropped.values()) == report.records


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CocoFolder:
    return many_scenes(tmp_path_factory.mktemp("coco"), images=40)


def both_splits(out: Path) -> list[Sample]:
    return [*SampleStore(out), *SampleStore(out, "validation")]


def test_without_scaling_the_cue_is_the_target_region_to_the_pixel(scenes: CocoFolder, tmp_path: Path) -> None:
    """Padding included: the answer is the region that was cropped."""
    build(scenes, tmp_path / "out", scale=(1.0, 1.0), padding=(0.0, 0.3))
    padded = 0
    for sample in both_splits(tmp_path / "out"):
        scene, cue = (image.open() for image in sample.images)
        assert sample.target.rounded() == sample.target.corners
        np.testing.assert_array_equal(np.asarray(cue), np.asarray(scene.crop(sample.target.rounded())))
        padded += sample.target.area > 1.2 * sample.metadata["area_share"] * 200 * 150
    assert padded > 10


def test_the_target_contains_the_annotated_box_and_only_augmented_bins_are_padded_and_scaled(
    scenes: CocoFolder, tmp_path: Path
) -> None:
    build(scenes, tmp_path / "out")
    boxes = {record["id"]: record["bbox"] for record in scenes.annotation_records}
    scales = {"tiny": set(), "small": set()}
    for sample in both_splits(tmp_path / "out"):
        x, y, width, height = boxes[sample.metadata["annotation_id"]]
        target, cue = sample.target, sample.images[1]
        assert target.x1 <= x and target.y1 <= y and target.x2 >= x + width and target.y2 >= y + height
        slack = 0.1 if sample.metadata["bin"] == "tiny" else 0.0
        assert x - target.x1 < slack * width + 1 and target.y2 - y - height < slack * height + 1
        scale = cue.width / (target.x2 - target.x1)
        assert 0.75 < scale < 2.05
        assert min(cue.width, cue.height) >= 16
        scales[sample.metadata["bin"]].add(round(scale, 2))
    assert scales["small"] == {1.0}
    assert min(scales["tiny"]) < 0.95 and max(scales["tiny"]) > 1.5


def test_no_cue_is_scaled_below_the_smallest_crop(scenes: CocoFolder, tmp_path: Path) -> None:
    build(scenes, tmp_path / "out", scale=(0.2, 0.2), mix={"tiny": 1.0})
    sizes = [sample.images[1] for sample in both_splits(tmp_path / "out")]
    assert {min(cue.width, cue.height) for cue in sizes} == {16}


def test_the_mix_is_exact_and_no_image_serves_both_splits(scenes: CocoFolder, tmp_path: Path) -> None:
    report = build(scenes, tmp_path / "out")
    train, validation = SampleStore(tmp_path / "out"), SampleStore(tmp_path / "out", "validation")
    assert Counter(sample.metadata["bin"] for sample in train) == {"tiny": 28, "small": 12}
    assert Counter(sample.metadata["bin"] for sample in validation) == {"tiny": 7, "small": 3}
    assert not {s.metadata["image_id"] for s in train} & {s.metadata["image_id"] for s in validation}
    assert len({sample.id for sample in both_splits(tmp_path / "out")}) == 50
    assert accounts_add_up(report) and report.kept == 50


def test_distractors_are_the_other_boxes_of_the_category(scenes: CocoFolder, tmp_path: Path) -> None:
    build(scenes, tmp_path / "out")
    records = {record["id"]: record for record in scenes.annotation_records}
    found = 0
    for sample in both_splits(tmp_path / "out"):
        mine = records[sample.metadata["annotation_id"]]
        others = [
            record["bbox"]
            for record in records.values()
            if record["image_id"] == mine["image_id"] and record["category_id"] == mine["category_id"] and record is not mine
        ]
        expected = [[x, y, x + w, y + h] for x, y, w, h in others]
        np.testing.assert_allclose(
            np.reshape([box.corners for box in sample.distractors], (-1, 4)), np.reshape(expected, (-1, 4))
        )
        assert all(iou(box, sample.target) < 0.9 for box in sample.distractors)
        found += len(expected)
    assert found > 20


def test_an_object_annotated_twice_is_no_distractor_of_itself(tmp_path: Path) -> None:
    folder = CocoFolder(tmp_path)
    folder.add_image(1)
    folder.add_box(1, [20, 20, 30, 30])
    folder.add_box(1, [20, 20.5, 30, 30])
    folder.add_box(1, [100, 20, 30, 30])
    folder.write()
    build(folder, tmp_path / "out", train_samples=3, validation_samples=0, mix={"tiny": 1.0}, augmented_bins=())
    by_id = {sample.metadata["annotation_id"]: len(sample.distractors) for sample in SampleStore(tmp_path / "out")}
    assert by_id == {1: 1, 2: 1, 3: 2}


def test_same_seed_same_bytes_whatever_the_number_of_workers(scenes: CocoFolder, tmp_path: Path) -> None:
    (scenes.images / "3.png").rename(scenes.images / "3.hidden")  # so that replacement rounds are part of it
    try:
        for name, workers, seed in (("one", 1, 5), ("two", 2, 5), ("other", 1, 6)):
            build(scenes, tmp_path / name, workers, seed=seed)
    finally:
        (scenes.images / "3.hidden").rename(scenes.images / "3.png")
    contents = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "other")
    }
    assert contents["one"] == contents["two"]
    assert contents["one"]["train-00000.parquet"] != contents["other"]["train-00000.parquet"]


def test_bad_images_are_counted_and_replaced(tmp_path: Path) -> None:
    folder = many_scenes(tmp_path, images=40)
    (folder.images / "1.png").unlink()
    whole = (folder.images / "2.png").read_bytes()
    (folder.images / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder.images / "3.png").write_bytes(b"not an image")
    Image.new("RGB", (150, 200)).save(folder.images / "4.png")
    report = build(folder, tmp_path / "out", train_samples=60, mix={"tiny": 0.5, "small": 0.5}, seed=1)
    assert report.images == {"missing_image": 1, "size_mismatch": 1, "undecodable_image": 2}
    assert {reason: report.dropped[reason] for reason in report.images} == {
        "missing_image": usable(folder, 1),
        "size_mismatch": usable(folder, 4),
        "undecodable_image": usable(folder, 2) + usable(folder, 3),
    }
    assert accounts_add_up(report)
    assert {name: filled.kept for name, filled in report.splits["train"].items()} == {"tiny": 30, "small": 30}
    assert not {1, 2, 3, 4} & {sample.metadata["image_id"] for sample in both_splits(tmp_path / "out")}


def usable(folder: CocoFolder, image_id: int) -> int:
    """How many boxes of the image are in a size bin of the mix."""
    areas = [r["bbox"][2] * r["bbox"][3] for r in folder.annotation_records if r["image_id"] == image_id]
    return sum(area < 0.12 * 200 * 150 for area in areas)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_file_cut_short_anywhere_is_never_a_grey_cue(tmp_path: Path, suffix: str) -> None:
    """Pillow can be told to fill the missing part with grey; the builder must not."""
    folder = CocoFolder(tmp_path)
    folder.add_image(1)
    folder.add_box(1, [150, 100, 40, 40])
    folder.image_records[0]["file_name"] = f"cut{suffix}"
    folder.write()
    Image.open(folder.images / "1.png").save(folder.images / f"cut{suffix}")
    whole = (folder.images / f"cut{suffix}").read_bytes()
    for kept in (0, 10, len(whole) // 4, len(whole) // 2, int(len(whole) * 0.9)):
        (folder.images / f"cut{suffix}").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="undecodable_image 1"):
            build(folder, tmp_path / f"out{kept}", train_samples=1, validation_samples=0, mix={"small": 1.0})


def test_an_image_turned_by_its_exif_is_taken_as_stored(tmp_path: Path) -> None:
    """Annotations that fit the stored pixels work; those made for the turned image disagree in size and are dropped."""
    folder = CocoFolder(tmp_path)
    for image_id, size in ((1, (200, 150)), (2, (150, 200))):
        folder.add_image(image_id)
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90°
        Image.open(folder.images / f"{image_id}.png").save(folder.images / f"{image_id}.jpg", exif=exif, quality=95)
        folder.image_records[-1] |= {"file_name": f"{image_id}.jpg", "width": size[0], "height": size[1]}
        folder.add_box(image_id, [10, 20, 40, 40])
    folder.write()
    report = build(folder, tmp_path / "out", train_samples=2, validation_samples=0, mix={"small": 1.0})
    assert report.images == {"size_mismatch": 1}
    (sample,) = SampleStore(tmp_path / "out")
    scene, cue = (image.open() for image in sample.images)
    np.testing.assert_array_equal(np.asarray(cue), np.asarray(scene.crop((10, 20, 50, 60))))


def test_a_shortfall_is_reported_by_bin(scenes: CocoFolder, tmp_path: Path) -> None:
    report = build(scenes, tmp_path / "out", train_samples=10_000, validation_samples=0)
    assert report.unused == 0 and accounts_add_up(report)
    for filled in report.splits["train"].values():
        assert 0 < filled.kept < filled.wanted
    saved = json.loads((tmp_path / "out" / "build.json").read_text())
    assert saved["splits"]["train"]["tiny"] == {"wanted": 7000, "kept": report.splits["train"]["tiny"].kept}


def test_one_cue_an_image_where_asked(scenes: CocoFolder, tmp_path: Path) -> None:
    build(scenes, tmp_path / "out", train_samples=25, max_per_image=1)
    for split in ("train", "validation"):
        images = [sample.metadata["image_id"] for sample in SampleStore(tmp_path / "out", split)]
        assert len(images) == len(set(images)) > 0


def test_scenes_by_path_or_as_their_original_bytes(scenes: CocoFolder, tmp_path: Path) -> None:
    build(scenes, tmp_path / "path")
    build(scenes, tmp_path / "bytes", scene_storage="bytes")
    for by_path, by_bytes in zip(both_splits(tmp_path / "path"), both_splits(tmp_path / "bytes"), strict=True):
        assert by_path.images[0].path is not None and by_bytes.images[0].encoded is not None
        assert Path(by_path.images[0].path).read_bytes() == by_bytes.images[0].encoded
        assert by_path.images[1] == by_bytes.images[1]


def test_random_crops_are_cues_too(scenes: CocoFolder, tmp_path: Path) -> None:
    report = build(scenes, tmp_path / "out", source="random_crop", scale=(1.0, 1.0))
    assert report.kept == 50 and accounts_add_up(report) and report.record_name == "random boxes"
    for sample in both_splits(tmp_path / "out"):
        scene, cue = (image.open() for image in sample.images)
        np.testing.assert_array_equal(np.asarray(cue), np.asarray(scene.crop(sample.target.rounded())))
        assert sample.distractors == () and "category" not in sample.metadata


def test_jpeg_cues(scenes: CocoFolder, tmp_path: Path) -> None:
    build(scenes, tmp_path / "out", cue_format="jpeg", jpeg_quality=80)
    assert all((sample.images[1].encoded or b"").startswith(b"\xff\xd8") for sample in SampleStore(tmp_path / "out"))
    SampleStore(tmp_path / "out")[0].images[1].open()


def test_a_grey_scene_gives_an_rgb_cue(tmp_path: Path) -> None:
    folder = CocoFolder(tmp_path)
    folder.add_image(1)
    folder.add_box(1, [10, 20, 40, 40])
    folder.write()
    Image.open(folder.images / "1.png").convert("L").save(folder.images / "1.png")
    build(folder, tmp_path / "out", train_samples=1, validation_samples=0, mix={"small": 1.0})
    (sample,) = SampleStore(tmp_path / "out")
    scene, cue = (image.open() for image in sample.images)
    np.testing.assert_array_equal(np.asarray(cue), np.asarray(scene.crop(sample.target.rounded())))


def test_nothing_to_make_is_an_error_that_says_why_and_leaves_no_folder(tmp_path: Path) -> None:
    folder = CocoFolder(tmp_path)
    folder.add_image(1)
    folder.add_box(1, [0, 0, 5, 5])
    folder.write()
    with pytest.raises(ValueError, match="not one train sample could be made of 1 annotations: below_min_crop 1"):
        build(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_image_folder_is_named(scenes: CocoFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing_image"):
        build_locus(scenes.annotations, tmp_path, tmp_path / "out", config())
    with pytest.raises(ValueError, match="nowhere does not exist"):
        build_locus(scenes.annotations, tmp_path / "nowhere", tmp_path / "out", config())


def test_generated_scenes_go_through_the_same_reader(tmp_path: Path) -> None:
    annotations = write_coco(tmp_path / "coco", images=30, seed=0, split="train")
    knobs = config(bins={"any": SizeBin(0, 1)}, mix={"any": 1.0}, augmented_bins=(), train_samples=20)
    report = build_locus(annotations, tmp_path / "coco" / "train", tmp_path / "out", knobs)
    assert report.dropped == {} and report.kept == 30
    for sample in SampleStore(tmp_path / "out"):
        assert sample.distractors
        color, category = sample.metadata["attributes"]["color"], sample.metadata["category"]
        assert color in sample.metadata["rationale"] and category in sample.metadata["rationale"]


def test_an_object_in_words() -> None:
    assert describe({"color": "red", "pattern": "striped"}, "star") == "a red striped star"
    assert describe({"color": "orange", "size": 3, "note": ""}, "disc") == "an orange disc"

"""Parquet samples: what goes in comes out, for us and for `datasets`; a folder appears whole or not at all."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.box import Box
from data.prompts import focus_prompt, locus_prompt
from data.sample import EncodedImage, ImagePart, Sample
from data.store import SampleStore, row_to_sample, sample_to_row, samples_to_table
from data.store_writer import DatasetWriter, write_samples


def make_sample(index: int, path: str = "scene.jpg") -> Sample:
    scene, cue = EncodedImage(640, 480, path=path), EncodedImage(20, 30, encoded=bytes([index % 256]) * 5)
    target = Box(index % 600, 10.25, index % 600 + 20, 40, scene.frame)
    distractors = (Box(1, 2, 3, 4, scene.frame),) * (index % 3)
    return Sample(f"s{index}", "test", (scene, cue), locus_prompt(), target, 0, distractors, {"n": index, "list": [1, "ä"]})


def test_every_sample_comes_back_as_it_was(tmp_path: Path) -> None:
    samples = [make_sample(index, path=str(tmp_path / "scene.jpg")) for index in range(300)]
    write_samples(tmp_path / "set", {"train": samples, "validation": samples[:3]})
    store = SampleStore(tmp_path / "set")
    assert len(store) == 300
    assert list(store) == samples
    assert store[-1] == samples[-1] and store[10:13] == samples[10:13]
    assert list(SampleStore(tmp_path / "set", "validation")) == samples[:3]
    with pytest.raises(IndexError):
        store[300]


def test_the_most_images_of_a_sample_are_counted_over_all_files(tmp_path: Path) -> None:
    """The first sample says nothing: shot counts may vary."""
    cue = EncodedImage(20, 30, encoded=b"12345")
    many = replace(
        make_sample(1),
        images=(cue,) * 4,
        prompt=tuple(ImagePart(n) for n in range(4)),
        target=Box(1, 2, 3, 4, cue.frame),
        distractors=(),
    )
    write_samples(tmp_path / "set", {"train": [make_sample(0), many, make_sample(2)]})
    assert SampleStore(tmp_path / "set").most_images() == 4


def test_a_focus_sample_keeps_the_boxes_of_its_prompt() -> None:
    images = (EncodedImage(100, 50, path="/a.jpg"), EncodedImage(60, 90, path="/b.jpg"))
    support = Box(1.5, 2, 30, 40, images[0].frame)
    sample = Sample("f", "test", images, focus_prompt((support,)), Box(5, 6, 7, 80, images[1].frame), target_image=1)
    assert row_to_sample(sample_to_row(sample), Path("/elsewhere")) == sample


scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@given(st.dictionaries(st.text(), scalars | st.lists(scalars)), st.binary(min_size=1), st.text())
def test_any_metadata_bytes_and_text_survive(metadata: dict[str, object], encoded: bytes, text: str) -> None:
    image = EncodedImage(10, 10, encoded=encoded)
    sample = Sample(text, text, (image, image), locus_prompt(), Box(0, 0, 1, 1, image.frame), metadata=metadata)
    row = samples_to_table([sample]).to_pylist()[0]
    assert row_to_sample(row, Path()) == sample


def test_metadata_that_is_not_json_is_refused_with_the_sample_named() -> None:
    image = EncodedImage(10, 10, encoded=b"x")
    for bad in ({"x": float("nan")}, {"x": object()}):
        sample = Sample("s7", "t", (image, image), locus_prompt(), Box(0, 0, 1, 1, image.frame), metadata=bad)
        with pytest.raises(ValueError, match="sample s7: metadata"):
            sample_to_row(sample)


def test_datasets_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    write_samples(tmp_path / "set", {"train": [make_sample(i) for i in range(70)], "validation": [make_sample(5)]})
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 70, "validation": 1}
    row = loaded["train"][69]
    assert row["target"] == [69.0, 10.25, 89.0, 40.0]
    assert row["images"][1]["bytes"] == bytes([69]) * 5
    assert row_to_sample(row, tmp_path) == SampleStore(tmp_path / "set", image_root=tmp_path)[69]


def test_relative_paths_start_at_the_image_root(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with DatasetWriter(tmp_path / "sets" / "one", image_root=tmp_path / "photos") as writer:
        writer.write("train", samples_to_table([make_sample(0, path="sub/scene.jpg")]))
    assert SampleStore(tmp_path / "sets" / "one")[0].images[0].path == str(tmp_path / "photos/sub/scene.jpg")
    moved = SampleStore(tmp_path / "sets" / "one", image_root="/mnt/photos")
    assert moved[0].images[0].path == "/mnt/photos/sub/scene.jpg"


def test_images_and_dataset_side_by_side_can_move_together(tmp_path: Path) -> None:
    (tmp_path / "old" / "photos").mkdir(parents=True)
    with DatasetWriter(tmp_path / "old" / "set", image_root=tmp_path / "old" / "photos") as writer:
        writer.write("train", samples_to_table([make_sample(0)]))
    (tmp_path / "old").rename(tmp_path / "new")
    assert SampleStore(tmp_path / "new" / "set")[0].images[0].path == str(tmp_path / "new/photos/scene.jpg")


@pytest.mark.parametrize("image_bytes", [5, 200_000])
def test_the_bytes_depend_on_the_samples_alone_not_on_how_they_arrived(tmp_path: Path, image_bytes: int) -> None:
    """Large images too: they fill pages, and where a page ends must not depend on the tables that came."""
    rng = np.random.default_rng(0)
    samples = [
        replace(make_sample(index), images=(EncodedImage(640, 480, encoded=rng.bytes(image_bytes)),) * 2)
        for index in range(50)
    ]
    for name, step in (("one", 50), ("two", 3)):
        with DatasetWriter(tmp_path / name, rows_per_group=16, rows_per_shard=32) as writer:
            for start in range(0, 50, step):
                writer.write("train", samples_to_table(samples[start : start + step]))
    one, two = (sorted((tmp_path / name).glob("*.parquet")) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two] == ["train-00000.parquet", "train-00001.parquet"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert [sample.id for sample in SampleStore(tmp_path / "one")] == [sample.id for sample in samples]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    with pytest.raises(interruption), DatasetWriter(tmp_path / "set", rows_per_group=2) as writer:
        writer.write("train", samples_to_table([make_sample(i) for i in range(10)]))
        raise interruption
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_dataset(tmp_path: Path) -> None:
    write_samples(tmp_path / "set", {"train": [make_sample(1)]})
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path / "set", overwrite=True) as writer:
        writer.write("train", samples_to_table([make_sample(2)]))
        raise KeyboardInterrupt
    assert [sample.id for sample in SampleStore(tmp_path / "set")] == ["s1"]
    write_samples(tmp_path / "set", {"train": [make_sample(2)]}, overwrite=True)
    assert [sample.id for sample in SampleStore(tmp_path / "set")] == ["s2"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_existing_dataset_is_not_replaced_by_accident(tmp_path: Path) -> None:
    write_samples(tmp_path / "set", {"train": [make_sample(1)]})
    with pytest.raises(ValueError, match="exists already"):
        write_samples(tmp_path / "set", {"train": [make_sample(2)]})


def test_a_missing_split_says_which_there_are(tmp_path: Path) -> None:
    write_samples(tmp_path / "set", {"train": [make_sample(1)]})
    with pytest.raises(ValueError, match=r"no 'test' split.*it has train"):
        SampleStore(tmp_path / "set", "test")
    with pytest.raises(ValueError, match=r"data\.build"):
        SampleStore(tmp_path / "nowhere")


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_samples(tmp_path / "cut", {"train": [make_sample(1)]})
    shard = tmp_path / "cut" / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-00000\.parquet is not a readable Parquet file"):
        SampleStore(tmp_path / "cut")
    (tmp_path / "foreign").mkdir()
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "foreign" / "train-00000.parquet")
    with pytest.raises(ValueError, match="lacks distractors, images"):
        SampleStore(tmp_path / "foreign")


def test_a_store_travels_to_another_process(tmp_path: Path) -> None:
    write_samples(tmp_path / "set", {"train": [make_sample(i) for i in range(5)]})
    store = SampleStore(tmp_path / "set")
    assert list(pickle.loads(pickle.dumps(store))) == list(store)

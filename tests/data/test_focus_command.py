"""`python -m data.build focus`: its arguments, its table, its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.build import main, make_parser
from data.focus_command import parse_shots, parse_source, read_categories
from data.focus_config import FocusConfig, Source
from data.generators.tao import write_tao
from data.store import SampleStore
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec

SMALL = VideoSpec(frames=9, scene=SceneSpec(width=56, height=56, objects=(2, 2)))


@pytest.fixture(scope="module")
def tao(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tao")
    write_tao(root, 5, 0, "train", "train", SMALL, traps=True)
    write_tao(root, 2, 0, "validation", "val", SMALL)
    return root


def run(out: Path, *arguments: object) -> int:
    return main(["focus", "--out", str(out), "--workers", "1", *map(str, arguments)])


def table_of(printed: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


def test_the_table_says_what_was_kept_and_how_frames_were_chosen(
    tao: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of five trapped videos one has an empty box in frame 2, one has no box in frame 4: each moves one 4-shot frame."""
    assert run(tmp_path / "out", "--dataset", "tao", "--root", tao, "--split", "train", "--shots", "1,4") == 0
    rows = table_of(capsys.readouterr().out)
    assert rows["kept, train, tao, 4-shot"] == ["5", "5"]
    assert rows["frames moved"][0] == "2"
    assert (rows["frame rule"][1], rows["absent targets"][1]) == ("iploc", "skip")
    assert rows["tracks read"] == ["5", "tao:train"]
    saved = json.loads((tmp_path / "out" / "build.json").read_text())
    assert (saved["records"], saved["tracks"], saved["moved_frames"]) == (10, 5, 2)


def test_sources_join(tao: Path, tmp_path: Path) -> None:
    joint = ["--source", f"tao:train:{tao}", "--source", f"tao:validation:{tao}"]
    assert run(tmp_path / "out", *joint, "--shots", "2") == 0
    assert (len(SampleStore(tmp_path / "out")), len(SampleStore(tmp_path / "out", "validation"))) == (5, 2)


def test_the_policy_can_be_to_keep(tao: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of the two trapped frames carries a usable box."""
    assert run(tmp_path / "out", "--dataset", "tao", "--root", tao, "--split", "train", "--absent", "keep") == 0
    rows = table_of(capsys.readouterr().out)
    assert rows["kept, train, tao, 4-shot"][0] == "3" and rows["dropped, no usable box"][0] == "2"


def test_defaults_are_those_of_the_configuration(tao: Path) -> None:
    args = make_parser().parse_args(["focus", "--source", "tao:train:/data/tao", "--out", "o"])
    assert args.source == [Source("tao", "train", Path("/data/tao"))]
    default = FocusConfig()
    assert (args.shots, args.frame_rule, args.absent) == (default.shots, default.frame_rule, default.absence_policy)
    assert (default.shots, default.frame_rule, default.absence_policy) == ((4,), "iploc", "skip")


def test_values_are_read(tmp_path: Path) -> None:
    assert parse_shots("1,2,4") == (1, 2, 4)
    assert parse_source("tao:train:/data:old/tao") == Source("tao", "train", Path("/data:old/tao"))
    (tmp_path / "names").write_text("cat\n\nguinea pig \n")
    assert read_categories(str(tmp_path / "names")) == {"cat", "guinea pig"}


@pytest.mark.parametrize(
    "extra",
    [
        ["--shots", "four"],
        ["--source", "tao:train"],
        ["--source", "coco:train:/data"],
        ["--dataset", "coco"],
        ["--absent", "drop"],
        ["--frame-rule", "first"],
        ["--images", "pixels"],
        ["--as", "test"],
        ["--categories", "/nowhere"],
        ["--on-overlap", "ignore"],
    ],
)
def test_a_bad_argument_stops_at_once(tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "out", *extra)
    assert caught.value.code == 2
    assert extra[0] in capsys.readouterr().err


TAO: list[Any] = ["--dataset", "tao", "--split", "train", "--root"]


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ([], "a source is needed"),
        (["--dataset", "tao", "--root", "/nowhere"], "a source is needed"),
        ([*TAO, "/nowhere", "--source", "tao:train:/nowhere"], "not both"),
        ([*TAO, "/nowhere"], "/nowhere"),
        ([*TAO, "TREE", "--shots", "0"], "shots must be"),
        ([*TAO, "TREE", "--workers", "0"], "workers must be at least 1"),
        ([*TAO, "TREE", "--images-root", "/nowhere"], "--images-root is for iploc"),
        (["--dataset", "tao", "--split", "test", "--root", "TREE"], "no split 'test'"),
        (["--dataset", "iploc", "--root", "/nowhere"], "--images-root"),
    ],
)
def test_an_error_is_one_line(
    tao: Path, tmp_path: Path, extra: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", *[str(tao) if value == "TREE" else value for value in extra]) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("data.build: ") and complaint in message and "\n" not in message
    assert not (tmp_path / "out").exists()


def damaged_copy(tmp_path: Path) -> tuple[Path, Path]:
    """A TAO tree, and its image that is cut: the query's of the first video."""
    write_tao(tmp_path / "tao", 3, 0, "train", "train", SMALL)
    first = sorted((tmp_path / "tao" / "frames").rglob("*.jpg"))[8]
    first.write_bytes(first.read_bytes()[:300])
    return tmp_path / "tao", first


def test_damage_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, image = damaged_copy(tmp_path)
    assert run(tmp_path / "out", *TAO, root) == 0
    printed = capsys.readouterr()
    assert f"damaged: {image}" in printed.err
    assert table_of(printed.out)["dropped, damaged"][0] == "1"
    assert len(SampleStore(tmp_path / "out")) == 2


def test_strict_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, image = damaged_copy(tmp_path)
    assert run(tmp_path / "out", *TAO, root, "--strict") == 1
    assert f"data.build: {image}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_category_files_and_disjointness(tao: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = [*TAO, tao]
    assert run(tmp_path / "all", *source) == 0
    categories = sorted({sample.metadata["category"] for sample in SampleStore(tmp_path / "all")})
    (tmp_path / "seen").write_text(categories[0] + "\n")
    assert run(tmp_path / "seen-set", *source, "--categories", tmp_path / "seen") == 0
    disjoint = [*source, "--disjoint-from", tmp_path / "seen-set"]
    capsys.readouterr()
    assert run(tmp_path / "out", *disjoint) == 1
    assert f"not disjoint from {tmp_path / 'seen-set'}: it shares 1 categories ({categories[0]})" in capsys.readouterr().err
    assert run(tmp_path / "excluded", *disjoint, "--exclude-categories", tmp_path / "seen") == 0
    assert run(tmp_path / "dropped", *disjoint, "--on-overlap", "drop") == 0
    rest = [{sample.metadata["category"] for sample in SampleStore(tmp_path / name)} for name in ("excluded", "dropped")]
    assert rest == [set(categories[1:])] * 2


def test_both_splits_and_unmatched_exclusions_are_in_the_table(
    tao: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names").write_text("unicorn\n")
    both = ["--source", f"tao:train:{tao}", "--source", f"tao:validation:{tao}"]
    assert run(tmp_path / "out", *both, "--exclude-categories", tmp_path / "names") == 0
    printed = capsys.readouterr()
    shown = [{s.metadata["category"] for s in SampleStore(tmp_path / "out", split)} for split in ("train", "validation")]
    assert table_of(printed.out)["categories in both splits"][0] == str(len(shown[0] & shown[1]))
    assert table_of(printed.out)["excluded, of no track"] == ["1", "unicorn"]
    assert "note: no track is of the excluded category 'unicorn'" in printed.err


def write_list(root: Path) -> Path:
    """Three records: a sound one of two supports, one whose query has no box, one with an image that is cut."""
    for name in ("1", "2", "3", "bad"):
        Image.new("RGB", (40, 30), (90, 80, 70)).save(root / f"{name}.jpg")
    (root / "bad.jpg").write_bytes((root / "bad.jpg").read_bytes()[:-40])
    records = [
        {
            "element": "zebra",
            "image_path": ["1.jpg", "2.jpg", "3.jpg"],
            "bbox": ["[1, 2, 9, 9]", "[2, 2, 9, 9]", "[3, 2, 9, 9]"],
        },
        {"element": "dog", "image_path": ["1.jpg", "3.jpg"], "bbox": ["[1, 2, 9, 9]", "[0, 0, 0, 0]"]},
        {"element": "cow", "image_path": ["1.jpg", "bad.jpg"], "bbox": ["[1, 2, 9, 9]", "[1, 2, 9, 9]"]},
    ]
    (root / "list.json").write_text(json.dumps(records))
    return root / "list.json"


def test_a_published_list_is_taken_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_list(tmp_path)
    assert run(tmp_path / "out", "--dataset", "iploc", "--root", path, "--images-root", tmp_path, "--shots", "4") == 0
    (sample,) = SampleStore(tmp_path / "out", "validation")
    assert sample.target.corners == (3, 2, 9, 9) and sample.target_image == sample.metadata["shots"] == 2
    assert [Path(image.path or "").name for image in sample.images] == ["1.jpg", "2.jpg", "3.jpg"]
    assert sample.metadata["absence_policy"] == "as_listed"
    assert sample.metadata["category"] == "zebra" and "zebra" not in str(sample.prompt)
    printed = capsys.readouterr()
    rows = table_of(printed.out)
    assert rows["kept, validation, iploc, 2-shot"] == ["1", "1"]
    assert rows["dropped, unusable record"][0] == rows["dropped, damaged"][0] == "1"
    assert rows["frame rule"][1] == rows["absent targets"][1] == "as_listed"
    assert "unusable: " in printed.err and "record 1: the query has no box" in printed.err
    assert f"damaged: list.json: record 2: {tmp_path / 'bad.jpg'}" in printed.err


def test_a_list_joins_a_dataset_and_can_hold_the_files_themselves(tao: Path, tmp_path: Path) -> None:
    path = write_list(tmp_path)
    sources = ["--source", f"tao:train:{tao}", "--source", f"iploc:test:{path}", "--images-root", tmp_path]
    assert run(tmp_path / "out", *sources, "--images", "bytes") == 0
    (listed,) = SampleStore(tmp_path / "out", "validation")
    assert [image.encoded for image in listed.images] == [(tmp_path / f"{n}.jpg").read_bytes() for n in (1, 2, 3)]
    assert len(SampleStore(tmp_path / "out")) == 5

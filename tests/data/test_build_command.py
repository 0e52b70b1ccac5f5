"""`python -m data.build`: its table, its errors, and what an interruption leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from data.build import BUILDERS, main, make_parser
from data.config import LocusConfig, SizeBin
from data.locus_command import parse_bins, parse_mix, parse_range
from data.store import SampleStore
from tests.data.coco_files import CocoFolder, many_scenes

SIZES = ["--bins", "tiny=0:0.04,small=0.04:0.12"]


def arguments(folder: CocoFolder, out: Path, *extra: str) -> list[str]:
    paths = ["--annotations", str(folder.annotations), "--images", str(folder.images), "--out", str(out)]
    return ["locus", *paths, "--train", "40", "--validation", "10", "--workers", "1", *SIZES, *extra]


def test_the_table_says_what_was_kept_and_dropped_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = many_scenes(tmp_path, images=40)
    folder.add_box(1, [0, 0, 5, 5])
    folder.add_box(1, [0, 0, 50, 50], iscrowd=1)
    folder.write()
    assert main(arguments(folder, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    rows = {cells[1].strip(): cells[2].strip() for line in printed.splitlines() if len(cells := line.split("│")) > 3}
    assert rows["kept, train, tiny"] == "28"
    assert rows["kept, validation, small"] == "3"
    assert rows["dropped, crowd"] == rows["dropped, below min crop"] == "1"
    saved = json.loads((tmp_path / "out" / "build.json").read_text())
    assert saved["dropped"]["crowd"] == 1 and saved["records"] == len(folder.annotation_records)
    assert len(SampleStore(tmp_path / "out")) == 40


def test_the_defaults_are_the_papers() -> None:
    args = make_parser().parse_args(["locus", "--annotations", "a.json", "--images", "i", "--out", "o"])
    paper = LocusConfig()
    assert (args.train, args.validation, args.mix) == (99_500, 500, {"tiny": 0.7, "small": 0.3})
    assert (args.min_crop, args.padding, args.scale) == (16, (0.0, 0.1), (0.8, 2.0)) == (16, paper.padding, paper.scale)
    assert args.bins == {"tiny": SizeBin(0, 0.01), "small": SizeBin(0.01, 0.05), "large": SizeBin(0.1, 1)}


def test_knobs_are_read() -> None:
    assert parse_mix("tiny=0.6,small=0.4") == {"tiny": 0.6, "small": 0.4}
    assert parse_bins("a=0:0.5,b=0.5:1") == {"a": SizeBin(0, 0.5), "b": SizeBin(0.5, 1)}
    assert parse_range("0.8:2") == (0.8, 2.0)


@pytest.mark.parametrize(
    "extra",
    [
        ["--mix", "tiny"],
        ["--mix", "tiny=x"],
        ["--bins", "a=1:0"],
        ["--scale", "2"],
        ["--exclude-images", "/nowhere"],
        ["--sed", "1"],
    ],
)
def test_a_bad_argument_stops_at_once(tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments(CocoFolder(tmp_path), tmp_path / "out", *extra))
    assert caught.value.code == 2
    assert extra[0] in capsys.readouterr().err


def test_excluded_ids_come_from_lines_or_json(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("3\n17\n")
    (tmp_path / "list").write_text("[3, 17]")
    for name in ("lines", "list"):
        args = make_parser().parse_args(arguments(CocoFolder(tmp_path), tmp_path, "--exclude-images", str(tmp_path / name)))
        assert args.exclude_images == {3, 17}


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (["--mix", "tiny=0.6"], "sum to 1"),
        (["--mix", "huge=1"], "unknown size bins ['huge']"),
        (["--workers", "0"], "workers must be at least 1"),
        (["--images", "/nowhere"], "image folder /nowhere does not exist"),
    ],
)
def test_an_error_is_one_line(tmp_path: Path, extra: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = many_scenes(tmp_path, images=2)
    assert main(arguments(folder, tmp_path / "out", *extra)) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("data.build: ") and complaint in message and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_broken_json_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = many_scenes(tmp_path, images=2)
    text = folder.annotations.read_text()
    folder.annotations.write_text(text[: len(text) // 2])
    assert main(arguments(folder, tmp_path / "out")) == 1
    message = capsys.readouterr().err.strip()
    assert "instances.json: broken JSON at character" in message and "\n" not in message


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file size limit stands in for a full disk: writing fails in the middle of a shard."""
    folder = many_scenes(tmp_path / "coco", images=40)
    limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); import data.build;"
    limited += "sys.exit(data.build.main(sys.argv[1:]))"
    command = [sys.executable, "-c", limited, *arguments(folder, tmp_path / "sets" / "out")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.strip().startswith("data.build: ") and "Traceback" not in ended.stderr
    assert list((tmp_path / "sets").iterdir()) == []


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_an_interrupted_build_leaves_no_file_and_no_process(tmp_path: Path, how: signal.Signals, code: int) -> None:
    folder = CocoFolder(tmp_path / "coco")
    folder.add_image(1, 640, 480)
    record = folder.image_records.pop()
    scene = Image.open(folder.images / "1.png")
    scene.load()
    scene.save(folder.images / "1.jpg", quality=98)
    for image_id in range(1, 8001):
        (folder.images / f"{image_id}_.jpg").hardlink_to(folder.images / "1.jpg")
        folder.image_records.append(record | {"id": image_id, "file_name": f"{image_id}_.jpg"})
        folder.add_box(image_id, [10, 10, 150, 150])
    folder.write()
    command = [sys.executable, "-m", "data.build", *arguments(folder, tmp_path / "sets" / "out", "--workers", "2")]
    process = psutil.Popen([*command, "--train", "8000", "--mix", "small=1"], stderr=subprocess.PIPE, start_new_session=True)
    wait_until_writing(process, tmp_path / "sets")
    children = process.children(recursive=True)
    assert children
    # As a terminal does for Ctrl-C: to every process of the group.
    os.killpg(process.pid, how)
    _, message = process.communicate(timeout=60)
    assert process.returncode == code
    assert "nothing was written" in message.decode() and "Traceback" not in message.decode()
    assert list((tmp_path / "sets").iterdir()) == []
    assert psutil.wait_procs(children, timeout=20)[1] == []


def wait_until_writing(process: psutil.Popen, folder: Path) -> None:
    while not list(folder.glob(".out.partial-*/*.parquet")):
        assert process.poll() is None, "the build ended before it could be interrupted"
        time.sleep(0.02)


def test_the_registry_answers_help() -> None:
    for name in BUILDERS:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0

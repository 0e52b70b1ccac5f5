"""One damaged file in a dataset's tree: every episode that is built is the undamaged build's, and what is missing is told.

Damage that leaves another valid file cannot be found by anyone, and is not tried: a digit changed or cut off where more
would not be missed, a whole record left out of a JSON file, a line left out of a list of videos.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from data.focus import build_focus
from data.focus_config import FocusConfig, Source
from data.generators.burst import write_burst
from data.generators.got10k import write_got10k
from data.generators.lasot import write_lasot
from data.generators.perseg import write_perseg
from data.generators.tao import write_tao
from data.store import SampleStore, sample_to_row
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec

SPEC = VideoSpec(frames=9, scene=SceneSpec(width=40, height=40, objects=(2, 2)))
CONFIG = FocusConfig(shots=(1, 4), output_split="train")
IMAGES = (".jpg", ".png")
# Fewer lines, or other names, make another valid list.
LISTS = ("list.txt", "testing_set.txt")

Damage = Callable[[bytes, float], bytes | None]


@dataclass(frozen=True)
class Tree:
    """A dataset on disk, and the rows of its undamaged episodes by id."""

    source: Source
    files: tuple[Path, ...] = field(repr=False)
    clean: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Trees:
    """In a failing example's report, paths say enough."""

    by_name: dict[str, Tree] = field(repr=False)


def episodes(source: Source) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Rows with their pixels by id, and the messages of damage. What a dataset says beyond its tracks is not compared."""
    with TemporaryDirectory() as out:
        report = build_focus([source], Path(out) / "set", CONFIG)
        assert report.kept + sum(report.dropped.values()) == report.records
        rows = {}
        for sample in SampleStore(Path(out) / "set"):
            metadata = {key: value for key, value in sample.metadata.items() if key != "annotation"}
            pixels = [zlib.crc32(image.open().tobytes()) for image in sample.images]
            rows[sample.id] = sample_to_row(sample) | {"metadata": metadata, "pixels": pixels}
        assert len(rows) == report.kept
        return rows, report.damage


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    root = tmp_path_factory.mktemp("datasets")
    write_tao(root / "tao", 3, 0, "train", "train", SPEC)
    write_lasot(root / "lasot", 2, 0, "train", "train", SPEC, traps=True)
    write_lasot(root / "lasot", 1, 0, "test", "val", SPEC)
    write_got10k(root / "got10k", 3, 0, "train", "train", SPEC, traps=True)
    write_perseg(root / "perseg", 3, 0, "val", SPEC)
    write_burst(root / "permirs", 3, 0, "val", "val", SPEC)
    splits = {"tao": "train", "lasot": "train", "got10k": "train", "perseg": "test", "permirs": "val"}
    made = {}
    for name, split in splits.items():
        source = Source(name, split, root / name)
        clean, messages = episodes(source)
        assert len(clean) >= 4 and messages == ()
        made[name] = Tree(source, tuple(sorted(path for path in source.root.rglob("*") if path.is_file())), clean)
    return Trees(made)


def truncate(content: bytes, at: float) -> bytes:
    return content[: int(at * len(content))]


def delete(content: bytes, at: float) -> None:
    return None


def on_lines(content: bytes, at: float, change: Callable[[list[bytes], int], None]) -> bytes:
    lines = content.split(b"\n")
    change(lines, int(at * len(lines)))
    return b"\n".join(lines)


def blank_line(content: bytes, at: float) -> bytes:
    return on_lines(content, at, lambda lines, place: lines.insert(place, b""))


def drop_line(content: bytes, at: float) -> bytes:
    return on_lines(content, at, lambda lines, place: lines.__delitem__(place))


def repeat_line(content: bytes, at: float) -> bytes:
    return on_lines(content, at, lambda lines, place: lines.insert(place, lines[place]))


def not_a_number(content: bytes, at: float) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not numbers:
        return content
    chosen = numbers[int(at * len(numbers))]
    return content[: chosen.start()] + b"NaN" + content[chosen.end() :]


def drop_value(content: bytes, at: float) -> bytes:
    values = list(re.finditer(rb",[^,\n]*", content))
    if not values:
        return content
    chosen = values[int(at * len(values))]
    return content[: chosen.start()] + content[chosen.end() :]


def damages_of(path: Path) -> list[Damage]:
    """The kinds of damage that can be told from another valid file of this kind."""
    if path.suffix in IMAGES:
        return [truncate, delete]
    if path.name in LISTS:
        return [blank_line, repeat_line, delete]
    if path.suffix == ".json":
        return [truncate, blank_line, drop_line, repeat_line, not_a_number, delete]
    return [truncate, blank_line, drop_line, repeat_line, not_a_number, drop_value, delete]


def check(tree: Tree, path: Path, damage: Damage, at: float) -> None:
    content = path.read_bytes()
    damaged = damage(content, at)
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged)
    try:
        rows, messages = episodes(tree.source)
    except ValueError as error:
        rows, messages = {}, (str(error),)
        event("refused")
    finally:
        path.write_bytes(content)
    for name, row in rows.items():
        assert row == tree.clean.get(name), f"{name} is another episode after {damage.__name__} of {path}"
    if missing := set(tree.clean) - set(rows):
        event("dropped")
        assert any(str(path) in message or str(path.parent) in message for message in messages), (missing, messages)


@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("name", ["tao", "lasot", "got10k", "perseg", "permirs"])
def test_a_damaged_file_never_makes_another_episode(trees: Trees, name: str, data: st.DataObject) -> None:
    tree = trees.by_name[name]
    # By kind of file first: most files are images.
    kinds = sorted({kind_of(path) for path in tree.files})
    kind = data.draw(st.sampled_from(kinds), label="kind of file")
    path = data.draw(st.sampled_from([path for path in tree.files if kind_of(path) == kind]), label="file")
    damage = data.draw(st.sampled_from(damages_of(path)), label="damage")
    check(tree, path, damage, data.draw(st.floats(0, 1, exclude_max=True), label="at"))


def kind_of(path: Path) -> str:
    return path.suffix if path.suffix in IMAGES else path.name

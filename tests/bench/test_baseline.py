"""What counts as a fall, and what `make bench-check` then does. Expectations by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench import baseline
from tests.bench.rows import Row, read_json


def row(name: str, ratio: float, kept: bool = True) -> Row:
    return Row(name, 1.0, "s", "floor", ratio, "how", kept=kept)


BEFORE = {"Reference": {"short": 2.0, "long": 4.0}, "Start-up": {"first step": 0.5}}


def test_a_ratio_may_fall_by_fifteen_percent_and_no_more():
    measured = {"Reference": [row("short", 1.71), row("long", 3.39)]}
    (fall,) = baseline.falls(BEFORE, measured)
    assert (fall.row, fall.before, fall.now) == ("long", 4.0, 3.39)
    assert str(fall) == "Reference: long: 4.00 in the baseline, 3.39 now (-15%)"


def test_better_ratios_new_rows_and_benchmarks_left_out_are_no_fall():
    measured = {"Reference": [row("short", 9.0), row("long", 4.0), row("new", 0.1)]}
    assert baseline.falls(BEFORE, measured) == []
    assert baseline.unknown(BEFORE, measured) == ["Reference: new"]


def test_a_row_that_is_gone_is_a_fall_unless_the_machine_lacks_something():
    (fall,) = baseline.falls(BEFORE, {"Reference": [row("short", 2.0)]})
    assert str(fall) == "Reference: long: 4.00 in the baseline, no longer measured"
    assert baseline.falls(BEFORE, {"Reference": [row("short", 2.0), Row.missing("long", "no network")]}) == []
    parts = {"Reference": [row("short", 2.0), Row.part("a part", 1.0, "s", 2.0)]}  # no ratio, but nothing is missing
    assert len(baseline.falls(BEFORE, parts)) == 1


def test_the_baseline_keeps_ratios_of_kept_rows_and_those_of_benchmarks_not_measured(tmp_path: Path):
    path = tmp_path / "baseline.json"
    baseline.write({"Start-up": [row("first step", 0.5)], "Reference": [row("old", 1.0)]}, {"cores": 2}, path)
    measured = {"Reference": [row("short", 2.00049), row("arithmetic", 0.1, kept=False), Row.missing("long", "why")]}
    baseline.write(measured, {"cores": 4}, path)
    assert json.loads(path.read_text())["machine"] == {"cores": 4}
    assert baseline.read(path) == {"Start-up": {"first step": 0.5}, "Reference": {"short": 2.0}}


def test_a_fallen_benchmark_is_measured_once_more_and_the_better_ratio_counts(monkeypatch, tmp_path: Path):
    path = tmp_path / "baseline.json"
    baseline.write({"Reference": [row("short", 2.0), row("long", 4.0)], "Start-up": [row("first step", 0.5)]}, {}, path)
    monkeypatch.setattr(command.baseline, "read", lambda: json.loads(path.read_text())["ratios"])
    again: list[str] = []

    def measure(module: str, quick: bool) -> tuple[str, list[Row]]:
        again.append(module)
        return "Reference", [row("short", 1.9), row("long", 1.0)]

    monkeypatch.setattr(command, "measure", measure)
    rows = {"Reference": [row("short", 1.0), row("long", 1.1)], "Start-up": [row("first step", 0.5)]}
    fallen = command.check(rows, {"Reference": "bench_reference", "Start-up": "bench_startup"})
    assert again == ["bench_reference"]
    assert [(fall.row, fall.now) for fall in fallen] == [("long", 1.1)]


@pytest.mark.parametrize(("now", "status"), [(1.0, 1), (2.0, 0)])
def test_bench_check_fails_by_its_exit_status_and_names_the_remedy(monkeypatch, capsys, tmp_path: Path, now, status):
    kept, out = tmp_path / "baseline.json", tmp_path / "bench.json"
    baseline.write({"Reference": [row("long", 2.0)]}, {}, kept)
    monkeypatch.setattr(command.baseline, "read", lambda: json.loads(kept.read_text())["ratios"])
    monkeypatch.setattr(command, "measure", lambda module, quick: ("Reference", [row("long", now)]))
    monkeypatch.setattr(command.machine, "description", lambda: {"cores": 2})
    monkeypatch.setattr("sys.argv", ["bench", "--check", "--only", "bench_reference", "--json", str(out)])
    assert command.main() == status
    printed = capsys.readouterr()
    assert ("Reference: long: 2.00 in the baseline, 1.00 now (-50%)" in printed.err) == bool(status)
    assert ("python -m tests.bench --write-baseline" in printed.err) == bool(status)
    assert read_json(out) == {"Reference": [row("long", now)]}


def test_a_benchmark_that_fails_fails_the_whole_and_the_others_still_print(monkeypatch, capsys, tmp_path: Path):
    def measure(module: str, quick: bool) -> tuple[str, list[Row]]:
        if module == "bench_step":
            raise command.BenchmarkError("bench_step ended with 1: no space left")
        return "Reference", [row("long", 1.0)]

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command.machine, "description", lambda: {"cores": 2})
    only = ["--only", "bench_step", "bench_reference"]
    monkeypatch.setattr("sys.argv", ["bench", *only, "--json", str(tmp_path / "bench.json")])
    assert command.main() == 1
    printed = capsys.readouterr()
    assert "no space left" in printed.err and "long" in printed.out


def test_one_benchmark_runs_in_a_process_of_its_own_and_hands_its_rows_back(monkeypatch, tmp_path: Path):
    """A module of the real registry would take minutes: one made for this, found by its name like any."""
    package = Path(command.__file__).parent
    module = package / "bench_of_this_test.py"
    module.write_text(
        "from tests.bench.rows import Row\nNAME = 'Made up'\n"
        "def rows(quick):\n    return [Row('quick' if quick else 'whole', 1.0, 's', 'f', 1.0, 'h')]\n"
    )
    try:
        assert command.measure("bench_of_this_test", quick=True) == ("Made up", [Row("quick", 1.0, "s", "f", 1.0, "h")])
        module.write_text("raise SystemExit('no such thing')")
        with pytest.raises(command.BenchmarkError, match="no such thing"):
            command.measure("bench_of_this_test", quick=True)
    finally:
        module.unlink()


def test_every_benchmark_of_the_command_has_a_name_and_rows_and_the_baseline_knows_no_other():
    """Read, not imported: importing them all would take longer than all tests of the frame."""
    sources = [Path(command.__file__).with_name(f"{module}.py").read_text() for module in command.BENCHMARKS]
    names = {re.search(r'^NAME = "(.+)"$', source, re.MULTILINE)[1] for source in sources}  # type: ignore[index]
    assert len(names) == len(sources)
    assert all(re.search(r"^def rows\(quick: bool", source, re.MULTILINE) for source in sources)
    assert set(baseline.read()) <= names

"""Rows, series measured in turn, the table and the JSON."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.rows import Row, in_turn, ratio_of, read_json, table_of, write_json


def test_variants_take_turns_and_the_warm_up_is_left_out():
    calls: list[str] = []

    def variant(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    taken = in_turn({"a": lambda: variant("a"), "b": lambda: variant("b")}, rounds=3, warm_up=1)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert taken == {"a": [4.0, 5.0, 8.0], "b": [3.0, 6.0, 7.0]}


def test_a_ratio_is_taken_round_by_round():
    # In the second round the machine was half as fast for both: the ratio of the medians, 60 / 20, would not show 2.
    ratio = ratio_of([100.0, 50.0, 60.0], [50.0, 25.0, 20.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="zip"):
        ratio_of([1.0, 2.0], [1.0])


@pytest.mark.parametrize("ratio", [float("nan"), float("inf")])
def test_a_row_without_a_number_says_so(ratio):
    with pytest.raises(ValueError, match=r"its ratio is (nan|inf); a row that was not measured"):
        Row("x", 1.0, "s", "floor", ratio, "how")


def test_json_gives_the_same_rows_back(tmp_path: Path):
    groups = {"One": [Row("x", 1.5, "s", "floor", 0.5, "how", 0.4, 0.6)], "Two": [Row.missing("y", "no network")]}
    path = tmp_path / "deep" / "bench.json"
    write_json(groups, {"cores": 2}, path)
    assert read_json(path) == groups


def test_the_table_has_every_row_with_its_floor_ratio_and_spread():
    rows = [
        Row("samples/s", 1234.5, "samples/s", "TRL: 100", 1.5, "in turn", 1.25, 1.75),
        Row.missing("reward", "no TRL: no index"),
        Row.part("rollout", 0.5, "s", 2.0),
    ]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table_of({"GRPO": rows}, "all"))
    measured, missing, part = (
        next(line for line in console.export_text(clear=False).splitlines() if word in line)
        for word in ("samples/s", "no TRL", "rollout")
    )
    cells = [cell.strip() for cell in measured.split("│")[1:-1]]
    assert cells == ["samples/s", "1,234 samples/s", "TRL: 100", "1.50", "1.25 – 1.75", "in turn"]
    assert [cell.strip() for cell in missing.split("│")[1:-1]] == ["reward", "–", "", "–", "", "no TRL: no index"]
    assert "25% of it" in part

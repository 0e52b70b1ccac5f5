"""The tiny recipes of LOCUS and FOCUS are one loss curve under every engine, on one rank and on two, whole and with LoRA.

Tolerance: every loss of every step within 1e-3 of FSDP2's on one rank, in float32, from the same seed through the real
program. `python -m tests.bench.bench_engines` prints the differences, and a step's time.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.bench.bench_engines import Cell, Curve, cells, curve

pytestmark = pytest.mark.slow
TOLERANCE = 1e-3
STEPS = 3
MATRIX = cells(("locus", "focus"), ("fsdp", "zero2", "zero3"), (1, 2), (0, 8))


@cache
def baseline(cell: Cell) -> Curve:
    return curve(cell, STEPS)


@pytest.mark.parametrize("cell", [cell for cell in MATRIX if cell != cell.baseline], ids=str)
def test_the_loss_curve_is_fsdps_on_one_rank(cell: Cell) -> None:
    expected = baseline(cell.baseline)
    stages = 2 if cell.recipe == "focus" else 1
    assert len(expected.steps) == stages * STEPS
    assert all(any(value != 0.0 for value in step.values()) for step in expected.steps)
    assert curve(cell, STEPS).gap(expected) <= TOLERANCE

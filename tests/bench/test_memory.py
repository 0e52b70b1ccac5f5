"""The verdict on host memory: lines fitted by hand, what counts as flat, and who a process is."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from tests.bench.bench_memory import allocated_mib, growth, growths, name_of


def test_growth_by_hand() -> None:
    # y = 100, 101, 103 at x = 0, 50, 100: slope 3/100, mean 304/3, residuals 1/6, −1/3, 1/6.
    found = growth("driver", [0, 50, 100], [100.0, 101.0, 103.0])
    assert found.per_100 == pytest.approx(3.0)
    assert found.mib == pytest.approx(304 / 3 - 1.5)
    assert found.error == pytest.approx(100 * np.sqrt((1 / 36 + 1 / 9 + 1 / 36) / 1 / 5000))


@pytest.mark.parametrize(("per_step", "flat"), [(0.0, True), (0.005, True), (0.02, False), (-0.02, True)])
def test_two_percent_over_a_thousand_steps_is_flat(per_step: float, flat: bool) -> None:
    """Of a process of 500 MiB those are 10 MiB, 0.01 a step; noise of 1 MiB hides neither."""
    steps = np.arange(0, 1000, 5)
    noise = np.random.default_rng(0).normal(0.0, 1.0, len(steps))
    assert growth("actor", steps, 500 + per_step * steps + noise).flat is flat


def test_the_start_and_processes_that_were_there_for_less_than_half_of_it_do_not_count() -> None:
    lines = [{"step": step, "mib": {"driver": 100.0 + max(0, 20 - step)}} for step in range(0, 100, 10)]
    lines[5]["mib"]["passing"] = 1.0
    (found,) = growths(lines, first_step=20)
    assert (found.name, found.samples, found.per_100) == ("driver", 8, pytest.approx(0.0))


def test_processes_have_names() -> None:
    assert name_of(["ray::LearnerActor.update"]) == "LearnerActor"
    assert name_of(["/opt/ray/gcs_server", "--log_dir=/logs"]) == "gcs_server"
    assert name_of(["/usr/bin/python3.11", "-c", "import rewards.child as c; c.serve(1, 2)"]) == "reward process"


def test_what_is_allocated_shows() -> None:
    before = allocated_mib(os.getpid())
    with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:  # pages that nobody had before
        held.write(b"1" * len(held))
        assert 31 < allocated_mib(os.getpid()) - before < 80  # with what was written from

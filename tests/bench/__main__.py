"""`make bench`: every benchmark in turn, one table, JSON beside it. `make bench-check`: has a ratio fallen?

    python -m tests.bench [--only bench_trl bench_startup] [--quick] [--all] [--json runs/bench.json]
    python -m tests.bench --check             quick, against tests/bench/baseline.json; exit status 1 if a ratio fell
    python -m tests.bench --write-baseline    quick, and its ratios become the baseline

Every benchmark runs in a process of its own, alone. `--all` adds those that take long and print tables of their own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from tests.bench import baseline, machine
from tests.bench.rows import Row, read_json, table_of, write_json

BENCHMARKS = (
    "bench_trl",
    "bench_step",
    "bench_rollout",
    "bench_shared_prefix",
    "bench_reference",
    "bench_weight_sync",
    "bench_attention_loss",
    "bench_data_build",
    "bench_prompts",
    "bench_startup",
)
LONG = ("bench_async", "bench_engines", "bench_sequence_parallel", "bench_plan_memory", "bench_memory")
WIDTH = 180


class BenchmarkError(RuntimeError):
    """A benchmark ended with an error; the message ends with what it printed."""


def measure(module: str, quick: bool) -> tuple[str, list[Row]]:
    """Run one benchmark: its name and rows. Raises BenchmarkError."""
    began = time.monotonic()
    print(f"{module} … ", end="", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "tests.bench.one", module, str(out), *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if done.returncode:
            raise BenchmarkError(f"{module} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        ((name, rows),) = read_json(out).items()
    return name, rows


def measure_all(modules: Iterable[str], quick: bool) -> tuple[dict[str, list[Row]], dict[str, str], list[str]]:
    """(rows by benchmark, module by benchmark, what failed)."""
    rows: dict[str, list[Row]] = {}
    modules_of: dict[str, str] = {}
    failed = []
    for module in modules:
        try:
            name, rows_of_it = measure(module, quick)
        except BenchmarkError as error:
            failed.append(str(error))
        else:
            rows[name], modules_of[name] = rows_of_it, module
    return rows, modules_of, failed


def check(rows: dict[str, list[Row]], modules: dict[str, str]) -> list[baseline.Fall]:
    """What fell; a benchmark with a fallen row is measured once more, and its better ratios count."""
    before = baseline.read()
    for name in dict.fromkeys(fall.benchmark for fall in baseline.falls(before, rows)):
        print(f"{name}: a ratio fell, once more", file=sys.stderr)
        try:
            rows[name] = baseline.better_of(rows[name], measure(modules[name], quick=True)[1])
        except BenchmarkError as error:  # what was measured first stands
            print(f"bench-check: {error}", file=sys.stderr)
    for row in baseline.unknown(before, rows):
        print(f"bench-check: {row}: not in the baseline, not compared", file=sys.stderr)
    return baseline.falls(before, rows)


def verdict(fallen: Sequence[baseline.Fall]) -> int:
    """Say it; the exit status."""
    for fall in fallen:
        print(f"bench-check: {fall}", file=sys.stderr)
    if fallen:
        print(
            f"bench-check: {len(fallen)} ratios are more than {baseline.TOLERANCE:.0%} below tests/bench/baseline.json. "
            "If that is meant, or the machine is another: python -m tests.bench --write-baseline",
            file=sys.stderr,
        )
    return 1 if fallen else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="BENCHMARK")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller shapes")
    parser.add_argument("--all", action="store_true", help=f"also {', '.join(LONG)}")
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"), metavar="FILE")
    parser.add_argument("--check", action="store_true", help="quick; fail where a ratio fell")
    parser.add_argument("--write-baseline", action="store_true", help="quick; keep the ratios")
    arguments = parser.parse_args()
    about = machine.description()
    quick = arguments.quick or arguments.check or arguments.write_baseline
    rows, modules, failed = measure_all(arguments.only, quick)
    fallen = check(rows, modules) if arguments.check else []
    title = ", ".join(f"{name} {value}" for name, value in about.items())
    Console(width=WIDTH).print(table_of(rows, title))
    write_json(rows, about, arguments.json)
    print(f"JSON: {arguments.json}")
    if arguments.write_baseline:
        baseline.write(rows, about)
    for module in LONG if arguments.all else ():
        status = subprocess.run([sys.executable, "-m", f"tests.bench.{module}"], check=False).returncode
        failed += [f"{module} ended with {status}"] if status else []
    for message in failed:
        print(message, file=sys.stderr)
    return max(verdict(fallen), 1 if failed else 0)


if __name__ == "__main__":
    sys.exit(main())

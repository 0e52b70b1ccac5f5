"""Host memory over a run: does any process, or Ray's object store, grow with the steps?

    python -m tests.bench.bench_memory [--steps 1000] [--every 5] [--out runs/memory.jsonl] [key=value …]

Runs the tiny LOCUS recipe with small steps (4 prompts × 4 answers) in this process, the driver, and reads every few steps
what each process has allocated (its anonymous pages, which no file and no other process accounts for), and how much the
object store holds. A line is fitted to what follows the first fifth. A process is flat if its growth over 1,000 steps, less
two standard errors, is under 2 % of its size; the status is 1 if any is not. Standard errors take the residuals for
independent, which they are not quite: look at the second half as well.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray._common.network_utils import build_address
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
from rich.console import Console
from rich.table import Table

from rl import tracking
from rl.config import load_recipe
from rl.demo import RECIPES
from rl.runlog import StepMetrics
from rl.train import run_recipe

MIB = 1 << 20
WARM_UP = 0.2
FLAT = 0.02  # of a process's size, over 1,000 steps
SMALL_MIB = 100.0  # under this size that share is taken of this size
STORE = "object store"

OVERRIDES = (
    "grpo.prompts_per_step=4",
    "grpo.prompts_per_update=4",
    "grpo.num_generations=4",
    "validation.every=0",
    "validation.samples=8",
    "validation.sampled=false",
    "checkpoint.every=0",
    "tracking.sinks=[console,jsonl,memory]",
)


class MemorySink:
    """A sink of metrics that reads the memory of all processes of the run every few steps."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._file = path.open("w")

    def log(self, record: StepMetrics) -> None:
        if record.step and record.step % self.every == 0:
            line = {"step": record.step, "time": record.time, "mib": memory_now()}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def memory_now() -> dict[str, float]:
    """MiB that each process of this run has allocated, and what the object store holds. One that just ended is left out."""
    driver = psutil.Process()
    found: dict[str, float] = {STORE: stored_mib()}
    for process in (driver, *driver.children(recursive=True)):
        try:
            name = "driver" if process == driver else name_of(process.cmdline())
            found[f"{name} ({process.pid})"] = allocated_mib(process.pid)
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
    return found


def allocated_mib(process: int) -> float:
    """A file's pages would count or not by who else has mapped the file: of torch's libraries some 50 MiB."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return float(line.split()[1]) / 1024
    raise OSError(f"/proc/{process}/smaps_rollup has no Pss_Anon: this wants Linux 5.9")


def name_of(command: Sequence[str]) -> str:
    """What a process is: an actor by its class, others by their program or module.

    >>> name_of(["ray::LearnerActor.update"])
    'LearnerActor'
    """
    shown = " ".join(command)
    if shown.startswith("ray::"):
        return shown.removeprefix("ray::").split(".")[0].split(" ")[0]
    for word, name in (("rewards.child", "reward process"), ("cluster.guardian", "guardian")):
        if word in shown:
            return name
    words = [Path(word).name for word in command if not word.startswith("-")]
    return next((word for word in words if not word.startswith("python")), words[0] if words else "?")


@functools.cache
def _raylet() -> Any:
    """One channel for all readings: Ray's own `node_stats` opens one a call, which is a leak itself."""
    (node,) = ray.nodes()
    where = build_address(node["NodeManagerAddress"], node["NodeManagerPort"])
    return node_manager_pb2_grpc.NodeManagerServiceStub(init_grpc_channel(where))


def stored_mib() -> float:
    """What the object store of this machine holds."""
    asked = node_manager_pb2.GetNodeStatsRequest(include_memory_info=False)
    return float(_raylet().GetNodeStats(asked, timeout=30.0).store_stats.object_store_bytes_used) / MIB


@dataclass(frozen=True)
class Growth:
    """A line through a process's memory: MiB at its start, MiB per 100 steps and the standard error of that."""

    name: str
    mib: float
    per_100: float
    error: float
    samples: int

    @property
    def flat(self) -> bool:
        return 10 * (self.per_100 - 2 * self.error) < FLAT * max(self.mib, SMALL_MIB)


def growth(name: str, steps: Sequence[float], mib: Sequence[float]) -> Growth:
    """Least squares. Wants three points at least."""
    x, y = np.asarray(steps, dtype=float), np.asarray(mib, dtype=float)
    centred = x - x.mean()
    slope = float((centred * y).sum() / (centred**2).sum())
    residuals = y - y.mean() - slope * centred
    error = float(np.sqrt((residuals**2).sum() / (len(x) - 2) / (centred**2).sum()))
    start = float(y.mean() + slope * (x[0] - x.mean()))
    return Growth(name, start, 100 * slope, 100 * error, len(x))


def growths(lines: Iterable[Mapping[str, Any]], first_step: float) -> list[Growth]:
    """Of every process that was there for most of the time after `first_step`."""
    kept = [line for line in lines if line["step"] >= first_step]
    names = dict.fromkeys(name for line in kept for name in line["mib"])
    found = []
    for name in names:
        points = [(line["step"], line["mib"][name]) for line in kept if name in line["mib"]]
        if len(points) >= max(3, len(kept) / 2):
            found.append(growth(name, *zip(*points, strict=True)))
    return found


def run(steps: int, every: int, out: Path, overrides: Sequence[str]) -> None:
    tracking.SINKS["memory"] = lambda context: MemorySink(out, every)  # type: ignore[index]
    with tempfile.TemporaryDirectory() as runs:
        recipe = load_recipe(RECIPES / "tiny.yaml", [*OVERRIDES, f"grpo.steps={steps}", f"runs={runs}", *overrides])
        if run_recipe(recipe):
            raise SystemExit("the run failed; its message is above")


def report(out: Path) -> bool:
    """Print the table; whether everything is flat."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    last = lines[-1]["step"]
    found = growths(lines, WARM_UP * last)
    halves = [growths(lines, WARM_UP * last), growths(lines, (1 + WARM_UP) / 2 * last)]
    second = {each.name: each for each in halves[1]}
    table = Table(title=f"Host memory over {last} steps, after the first {WARM_UP:.0%}")
    for column in ("process", "MiB", "MiB per 100 steps", "in the second half", ""):
        table.add_column(column, justify="left" if column in ("process", "") else "right")
    for each in sorted(found, key=lambda each: -each.per_100):
        later = second.get(each.name)
        table.add_row(
            each.name,
            f"{each.mib:,.1f}",
            f"{each.per_100:+.3f} ± {each.error:.3f}",
            f"{later.per_100:+.3f} ± {later.error:.3f}" if later else "",
            "flat" if each.flat else "grows",
        )
    Console(width=110).print(table)
    return all(each.flat for each in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=5, help="steps between two readings")
    parser.add_argument("--out", type=Path, default=Path("runs/memory.jsonl"), help="one reading a line")
    parser.add_argument("--report", action="store_true", help="only the table of an earlier --out")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    if not arguments.report:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        run(arguments.steps, arguments.every, arguments.out, arguments.overrides)
    return 0 if report(arguments.out) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What this machine can do at best, measured: the floors that bytes and FLOPs are divided by.

python -m tests.bench.machine
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

GEMM_SIDE = 1024
COPY_BYTES = 128 << 20
REPEATS = 7


def _best_seconds(work: Callable[[], object]) -> float:
    """The fastest of several: what the machine can do, whatever else it did meanwhile."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def gemm_flops_per_s(side: int = GEMM_SIDE) -> float:
    """float32, this process's threads."""
    left, right, out = (torch.ones(side, side) for _ in range(3))
    return 2 * side**3 / _best_seconds(lambda: torch.mm(left, right, out=out))


def copy_bytes_per_s() -> float:
    """One thread; a byte copied counts once."""
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    return COPY_BYTES / _best_seconds(lambda: target.copy_(source))


def description() -> dict[str, str | int | float]:
    """Beside every table: on what it was measured, and how busy that was."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(statistics.fmean(psutil.cpu_percent(0.2) for _ in range(5)) / 100, 2),
        "gemm_gflops_per_s": round(gemm_flops_per_s() / 1e9, 1),
        "copy_gb_per_s": round(copy_bytes_per_s() / 1e9, 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    print("\n".join(f"{name:20} {value}" for name, value in description().items()))

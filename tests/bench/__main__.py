"""`make bench`: every benchmark in turn, each printing its table."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "bench_step",
    "bench_shared_prefix",
    "bench_data_build",
    "bench_attention_loss",
    "bench_async",
    "bench_sequence_parallel",
    "bench_weight_sync",
    "bench_plan_memory",
)


def main() -> int:
    failed = [
        name for name in BENCHMARKS if subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

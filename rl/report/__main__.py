"""python -m rl.report RUN_DIR: make report.html anew from what a run left, with its dataset's images when they are there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.store import SampleStore
from rl.report import images_of, write_report
from rl.summary import write_summary


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rl.report", description="Write RUN_DIR/summary.json and RUN_DIR/report.html."
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--dataset", help="dataset folder with the validation images (default: the one in config.yaml)")
    args = parser.parse_args()
    if not args.run_dir.is_dir():
        print(f"there is no run directory {args.run_dir}", file=sys.stderr)
        return 1
    write_summary(args.run_dir)
    print(write_report(args.run_dir, images_of(SampleStore(args.dataset, "validation")) if args.dataset else None))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""python -m rl.report RUN_DIR: make report.html anew from what a run left, with its dataset's images when they are there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.store import SampleStore
from rl.report import write_report
from rl.report.gallery import Images, images_of
from rl.summary import read_facts, write_summary


def dataset_images(folder: str | None) -> Images | None:
    """The validation split of the folder; None, with a note, when it is not there any more."""
    if folder is None:
        return None
    try:
        return images_of(SampleStore(folder, "validation"))
    except ValueError as error:
        print(f"the gallery shows boxes without photographs: {error}", file=sys.stderr)
        return None


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
    images = dataset_images(args.dataset or read_facts(args.run_dir).validation_data)
    write_summary(args.run_dir)
    print(write_report(args.run_dir, images))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One benchmark in a process of its own: `python -m tests.bench.one bench_x OUT.json [--quick]`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from tests.bench.rows import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    module = importlib.import_module(f"tests.bench.{arguments.module}")
    write_json({module.NAME: module.rows(arguments.quick)}, {}, arguments.out)


if __name__ == "__main__":
    main()

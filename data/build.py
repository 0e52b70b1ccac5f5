"""Builds a dataset folder of samples from official dataset files.

    python -m data.build locus --annotations instances_train2014.json --images train2014/ --out datasets/locus
    python -m data.build focus --dataset tao --root tao/ --split train --out datasets/tao

Prints a table of what was kept and what was dropped and why; the same account is in OUT/build.json. OUT appears only when
it is complete. A new builder is one module with HELP, add_arguments and build, and one line in BUILDERS.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from data import focus_command, locus_command
from data.build_report import BuildReport
from data.parallel import available_cores

ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Builder:
    """A subcommand: its arguments beyond the common ones, and what makes the dataset from them."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    build: Callable[[argparse.Namespace, ProgressCallback], BuildReport]


BUILDERS: dict[str, Builder] = {
    "focus": Builder(focus_command.HELP, focus_command.add_arguments, focus_command.build),
    "locus": Builder(locus_command.HELP, locus_command.add_arguments, locus_command.build),
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.build", description="Build a dataset folder of samples.")
    commands = parser.add_subparsers(dest="builder", required=True, metavar="BUILDER")
    for name, builder in BUILDERS.items():
        command = commands.add_parser(name, help=builder.help, description=builder.help)
        command.add_argument("--out", type=Path, required=True, help="dataset folder to make")
        command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
        command.add_argument("--workers", type=int, default=available_cores(), help="processes (%(default)s)")
        builder.add_arguments(command)
    return parser


class _Bars:
    """One progress bar a split."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def update(self, split: str, kept: int, wanted: int) -> None:
        if split not in self.tasks:
            self.tasks[split] = self.progress.add_task(split, total=wanted)
        self.progress.update(self.tasks[split], completed=kept)


def run(args: argparse.Namespace) -> BuildReport:
    """Build with progress bars on stderr and the account on stdout."""
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        report = BUILDERS[args.builder].build(args, _Bars(progress).update)
    seconds = time.monotonic() - started
    console = Console()
    console.print(report.table())
    console.print(f"{report.kept:,} samples in {args.out} ({seconds:.1f} s, {report.kept / seconds:,.0f} samples/s)")
    return report


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    # As Ctrl-C does, so that a terminated build also leaves nothing half-written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"data.build: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"data.build: interrupted; nothing was written to {args.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

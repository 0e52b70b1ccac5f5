"""`python -m data.build focus`: the command-line arguments of the FOCUS builder."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from data.episode_sources import LISTS
from data.episodes import ABSENCE_POLICIES, FRAME_RULES
from data.focus import Progress, build_focus
from data.focus_config import FocusConfig, Source
from data.focus_report import FocusReport
from data.readers import READERS

HELP = "FOCUS in-context episodes from video datasets in their official layouts"
DATASETS = (*READERS, *LISTS)
# Datasets that have but one.
DEFAULT_SPLITS = {"perseg": "test", "iploc": "test"}
RULES_HELP = "iploc: i·(N//K) and N−1; paper: round(i·(N−1)/K) (%(default)s)"
ABSENT_HELP = (
    "skip: to the nearest visible frame; keep: frames as they are, with the box they carry, but an episode with a frame "
    "that has no usable box is dropped (%(default)s)"
)
FRACTION_HELP = "share of every training source's videos that goes to validation (%(default)s)"
DISJOINT_HELP = "a built dataset that may share no category and no video with this one; repeatable"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = FocusConfig()
    add = parser.add_argument
    add("--dataset", choices=DATASETS, metavar="NAME", help=f"one of {', '.join(DATASETS)} (a published list of episodes)")
    add("--root", type=Path, help="the dataset's folder; the list's file for iploc")
    add("--split", help="the dataset's split, in its own words: train, val, … (test where there is but one: perseg, iploc)")
    add("--images-root", type=Path, default=None, help="for iploc: the folder that the list's image paths start from")
    add(
        "--source",
        type=parse_source,
        action="append",
        default=[],
        metavar="NAME:SPLIT:ROOT",
        help="the same three in one, e.g. tao:train:/data/tao; repeat it for a joint set",
    )
    add("--shots", type=parse_shots, default=default.shots, metavar="K,…", help="supports; 1,2,4 makes three episodes (4)")
    add("--frame-rule", choices=tuple(FRAME_RULES), default=default.frame_rule, help=RULES_HELP)
    add("--absent", choices=tuple(ABSENCE_POLICIES), default=default.absence_policy, help=ABSENT_HELP)
    add("--images", choices=("path", "bytes"), default=default.image_storage, help="by path, or the files inside (path)")
    add(
        "--as",
        dest="output_split",
        choices=("train", "validation"),
        default=default.output_split,
        help="split to write (a source's train to train, any other to validation)",
    )
    add("--validation-fraction", type=float, default=default.validation_fraction, metavar="F", help=FRACTION_HELP)
    add("--categories", type=read_categories, default=None, metavar="FILE", help="only these categories, one a line")
    add(
        "--exclude-categories",
        type=read_categories,
        default=default.excluded_categories,
        metavar="FILE",
        help="none of these categories, one a line",
    )
    add("--disjoint-from", type=Path, action="append", default=[], metavar="DATASET", help=DISJOINT_HELP)
    add("--on-overlap", choices=("fail", "drop"), default=default.on_overlap, help="what is shared stops or drops (fail)")
    add("--strict", action="store_true", help="stop at the first damaged track")
    add("--seed", type=int, default=default.seed, help="of the choice of validation videos (%(default)s)")


def build(args: argparse.Namespace, progress: Progress) -> FocusReport:
    """Builds; damaged tracks are told on stderr."""
    config = FocusConfig(
        shots=args.shots,
        frame_rule=args.frame_rule,
        absence_policy=args.absent,
        image_storage=args.images,
        output_split=args.output_split,
        validation_fraction=args.validation_fraction,
        categories=args.categories,
        excluded_categories=args.exclude_categories,
        disjoint_from=tuple(args.disjoint_from),
        on_overlap=args.on_overlap,
        strict=args.strict,
        seed=args.seed,
    )
    report = build_focus(sources(args), args.out, config, args.workers, args.overwrite, progress)
    for message in report.damage:
        print(f"damaged: {message}", file=sys.stderr)
    if untold := report.damaged_tracks - len(report.damage):
        print(f"damaged: {untold:,} more", file=sys.stderr)
    for name in report.unmatched_exclusions:
        print(f"note: no track is of the excluded category {name!r}", file=sys.stderr)
    for message in report.unusable:
        print(f"unusable: {message}", file=sys.stderr)
    return report


def sources(args: argparse.Namespace) -> list[Source]:
    """Those of --source, or the one of --dataset, --root and --split."""
    split: str = args.split or DEFAULT_SPLITS.get(args.dataset, "")
    if args.source and (args.dataset, args.root, args.split) != (None, None, None):
        raise ValueError("give either --dataset, --root and --split, or --source NAME:SPLIT:ROOT, not both")
    if not args.source and not (args.dataset and args.root and split):
        raise ValueError("a source is needed: --dataset NAME --root FOLDER --split SPLIT, or --source NAME:SPLIT:ROOT")
    chosen = list(args.source) or [Source(args.dataset, split, args.root)]
    if args.images_root is not None and not any(source.dataset in LISTS for source in chosen):
        raise ValueError(f"--images-root is for {', '.join(LISTS)}: other datasets have their images under their root")
    return [replace(source, images_root=args.images_root) if source.dataset in LISTS else source for source in chosen]


def parse_source(text: str) -> Source:
    """`tao:train:/data/tao`"""
    dataset, split, root = (*text.split(":", 2), "", "")[:3]
    if not (dataset and split and root):
        raise argparse.ArgumentTypeError(f"expected NAME:SPLIT:ROOT, e.g. tao:train:/data/tao, got {text!r}")
    if dataset not in DATASETS:
        raise argparse.ArgumentTypeError(f"no reader of {dataset!r}; choose from {', '.join(DATASETS)}")
    return Source(dataset, split, Path(root))


def parse_shots(text: str) -> tuple[int, ...]:
    """`1,2,4`"""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, such as 1,2,4; got {text!r}") from error


def read_categories(text: str) -> frozenset[str]:
    """The names of a file, one a line; blank lines do not count."""
    try:
        names = frozenset(line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of categories: {error}") from error
    if not names:
        raise argparse.ArgumentTypeError(f"{text} names no category")
    return names

"""`python -m data.build locus`: the command-line arguments of the LOCUS builder, one for every knob."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data.build_report import BuildReport
from data.config import LocusConfig, SizeBin
from data.locus import Progress, build_locus

HELP = "LOCUS cue search from a COCO instances file (defaults: the paper's, on train2014)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = LocusConfig()
    add = parser.add_argument
    add("--annotations", type=Path, required=True, help="COCO file, e.g. annotations/instances_train2014.json")
    add("--images", type=Path, required=True, help="folder of the images, e.g. train2014/")
    add("--train", type=int, default=default.train_samples, metavar="N", help="training samples (%(default)s)")
    add("--validation", type=int, default=default.validation_samples, metavar="N", help="validation samples (%(default)s)")
    add("--mix", type=parse_mix, default=default.mix, metavar="BIN=SHARE,…", help="share of each size (tiny=0.7,small=0.3)")
    add(
        "--bins",
        type=parse_bins,
        default=default.bins,
        metavar="BIN=LOW:HIGH,…",
        help="sizes as shares of the image's area (tiny=0:0.01,small=0.01:0.05,large=0.1:1)",
    )
    add("--source", choices=("object", "random_crop"), default=default.source, help="what a cue is (%(default)s)")
    add("--min-crop", type=int, default=default.min_crop, metavar="PX", help="smallest side of a cue (%(default)s)")
    add("--padding", type=parse_range, default=default.padding, metavar="LOW:HIGH", help="context per side (0:0.1)")
    add("--scale", type=parse_range, default=default.scale, metavar="LOW:HIGH", help="resize of the cue (0.8:2)")
    add(
        "--augment",
        type=parse_names,
        default=None,
        metavar="BIN,…",
        help="sizes that get padding and scale; empty for none (tiny, where there is such a bin)",
    )
    add("--max-per-image", type=int, default=None, metavar="N", help="most cues of one image in a split (no bound)")
    add(
        "--exclude-images",
        type=read_image_ids,
        default=default.excluded_images,
        metavar="FILE",
        help="image ids never used, one a line or a JSON list; RefCOCO/+/g's when grounding is evaluated",
    )
    add("--cue-format", choices=("png", "jpeg"), default=default.cue_format, help="how cues are stored (%(default)s)")
    add("--jpeg-quality", type=int, default=default.jpeg_quality, metavar="Q", help="of JPEG cues (%(default)s)")
    add("--scenes", choices=("path", "bytes"), default=default.scene_storage, help="scenes by path or inside (%(default)s)")
    add("--seed", type=int, default=default.seed, help="of every choice (%(default)s)")


def build(args: argparse.Namespace, progress: Progress) -> BuildReport:
    augmented = args.augment
    if augmented is None:
        augmented = tuple(name for name in LocusConfig().augmented_bins if name in args.bins)
    config = LocusConfig(
        train_samples=args.train,
        validation_samples=args.validation,
        bins=args.bins,
        mix=args.mix,
        source=args.source,
        min_crop=args.min_crop,
        padding=args.padding,
        scale=args.scale,
        augmented_bins=augmented,
        max_per_image=args.max_per_image,
        excluded_images=args.exclude_images,
        cue_format=args.cue_format,
        jpeg_quality=args.jpeg_quality,
        scene_storage=args.scenes,
        seed=args.seed,
    )
    return build_locus(args.annotations, args.images, args.out, config, args.workers, args.overwrite, progress)


def parse_mix(text: str) -> dict[str, float]:
    """`tiny=0.7,small=0.3`"""
    return {name: _number(share) for name, share in (_pair(item, "=") for item in text.split(","))}


def parse_bins(text: str) -> dict[str, SizeBin]:
    """`tiny=0:0.01,small=0.01:0.05`"""
    try:
        return {name: SizeBin(*parse_range(bounds)) for name, bounds in (_pair(item, "=") for item in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_range(text: str) -> tuple[float, float]:
    """`0.8:2`"""
    low, high = _pair(text, ":")
    return _number(low), _number(high)


def parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_image_ids(text: str) -> frozenset[int]:
    """Image ids from a file: a JSON list, or numbers separated by blanks or lines."""
    try:
        content = Path(text).read_text()
        ids = json.loads(content) if content.lstrip().startswith("[") else content.split()
        return frozenset(int(image_id) for image_id in ids)
    except (OSError, ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of image ids: {error}") from error


def _pair(text: str, separator: str) -> tuple[str, str]:
    left, found, right = text.partition(separator)
    if not found:
        raise argparse.ArgumentTypeError(f"expected two values separated by {separator!r}, got {text!r}")
    return left.strip(), right.strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from error

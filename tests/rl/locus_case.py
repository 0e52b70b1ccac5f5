"""A small LOCUS dataset of held-out photographs, for the committed tiny model."""

from __future__ import annotations

from pathlib import Path

from data.config import LocusConfig, SizeBin
from data.locus import build_locus
from data.synthetic import write_coco
from data.tiny_sets import CUES_HELD_OUT


def write_locus(root: Path, samples: int) -> Path:
    annotations = write_coco(root / "coco", samples, seed=7, split="val", spec=CUES_HELD_OUT)
    bins = {"any": SizeBin(0.0, 1.0)}
    config = LocusConfig(0, samples, bins=bins, mix={"any": 1.0}, augmented_bins=(), scene_storage="bytes")
    build_locus(annotations, root / "coco" / "val", root / "locus", config)
    return root / "locus"

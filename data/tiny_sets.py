"""The small synthetic datasets of the recipes that run on a laptop, written where a recipe's folders are missing.

    data: {train: runs/data/locus-tiny/train, validation: runs/data/locus-tiny/held_out, synthetic: locus}

Scenes are painted, written in an official dataset's own layout, and built by that dataset's own builder: what a user's
data goes through. A folder's name says which part it is; parts on held-out photographs share none with training.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data.config import LocusConfig, SizeBin
from data.focus import build_focus
from data.focus_config import FocusConfig, Source
from data.generators.tao import write_tao
from data.locus import build_locus
from data.parallel import available_cores
from data.photos import Split
from data.synthetic import SceneSpec, write_coco
from data.synthetic_video import VideoSpec

MakePart = Callable[[Path, int], None]  # (folder, processes)
HELD_OUT_SAMPLES = 384


@dataclass(frozen=True)
class CuePart:
    """Cues of `scenes` scenes, a sample an object; held out: HELD_OUT_SAMPLES of them, for validation."""

    photographs: Split
    spec: SceneSpec
    scenes: int
    seed: int


def make_cues(out: Path, workers: int, part: CuePart) -> None:
    """COCO's layout beside `out`, and its cue-search dataset in `out`."""
    coco = out.parent / "coco" / out.name
    annotations = write_coco(coco, part.scenes, part.seed, part.photographs, part.spec, workers)
    objects = len(json.loads(annotations.read_text())["annotations"])
    held_out = part.photographs == "val"
    config = LocusConfig(
        train_samples=0 if held_out else objects,
        validation_samples=HELD_OUT_SAMPLES if held_out else 0,
        bins={"any": SizeBin(0.0, 1.0)},
        mix={"any": 1.0},
        padding=(0.0, 0.0),
        augmented_bins=("any",),
        scene_storage="bytes",
    )
    build_locus(annotations, coco / part.photographs, out, config, workers)


@dataclass(frozen=True)
class VideoPart:
    """In-context episodes of `videos` videos at each of `shots`."""

    photographs: Split
    spec: VideoSpec
    videos: int
    shots: tuple[int, ...]
    seed: int


def make_episodes(out: Path, workers: int, part: VideoPart) -> None:
    """TAO's layout beside `out`, and its episodes in `out`, images inside; the frames beside are removed again."""
    tao = out.parent / "tao" / out.name
    split = "validation" if part.photographs == "val" else "train"
    write_tao(tao, part.videos, part.seed, split, part.photographs, part.spec, workers=workers)  # type: ignore[arg-type]
    config = FocusConfig(shots=part.shots, image_storage="bytes")
    build_focus([Source("tao", split, tao)], out, config, workers)
    shutil.rmtree(tao)


# Objects of one shape a scene, so that only the cue tells which is meant; corners on the 14-px patch grid.
_CUES = SceneSpec(objects=(1, 3), area=(0.06, 0.14), grid=14, gap=0, margin=0.1, patterns=("plain",))
CUES_HELD_OUT = replace(_CUES, objects=(2, 3))

# Two or three objects of one shape: the supports are close views of the target, the query shows it among the others.
_EPISODES = VideoSpec(
    frames=6,
    scene=SceneSpec(
        width=84,
        height=84,
        objects=(2, 3),
        area=(0.08, 0.2),
        grid=14,
        gap=0,
        shapes=("disc", "square", "hexagon"),
        patterns=("plain",),
        background="plain",
    ),
    close_ups=(0.45, 0.8),
)

TINY_SETS: Mapping[str, Mapping[str, MakePart]] = {
    "locus": {
        "train": partial(make_cues, part=CuePart("train", _CUES, 3000, seed=0)),
        "warm_start": partial(make_cues, part=CuePart("train", _CUES, 6000, seed=1)),
        "held_out": partial(make_cues, part=CuePart("val", CUES_HELD_OUT, 200, seed=0)),
    },
    "focus": {
        "train": partial(make_episodes, part=VideoPart("train", _EPISODES, 6000, (4,), seed=0)),
        "held_out": partial(make_episodes, part=VideoPart("val", _EPISODES, HELD_OUT_SAMPLES, (4,), seed=0)),
        "test": partial(make_episodes, part=VideoPart("val", _EPISODES, HELD_OUT_SAMPLES, (1, 2, 4), seed=1)),
    },
}


def make_missing(name: str, folders: Iterable[Path]) -> None:
    """Write those of `folders` that do not exist, `…/<name>-tiny/<part>`; other folders are a user's own and left alone.

    Raises ValueError for an unknown part.
    """
    parts = TINY_SETS[name]
    for folder in folders:
        if folder.parent.name == f"{name}-tiny" and not folder.exists():
            if folder.name not in parts:
                raise ValueError(f"{folder}: the parts of the synthetic set {name!r} are {', '.join(parts)}")
            started = time.monotonic()
            parts[folder.name](folder, available_cores())
            print(f"data: {folder} ({time.monotonic() - started:.0f} s)", flush=True)

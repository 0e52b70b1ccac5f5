"""Writes synthetic videos in GOT-10k's layout: one-based decimal boxes, a label file a question, meta_info.ini.

    ROOT/train/list.txt
    ROOT/train/GOT-10k_Train_000001/{00000001.jpg …, groundtruth.txt, meta_info.ini, absence.label, cover.label,
                                     cut_by_image.label}

The class is the target's shape. Distractors are painted, not annotated. With `traps` (see `single_target`): a hidden target
has cover 0 and keeps its box, one that is gone is absent and has the box -1,-1,-1,-1, one that is cut has a negative x and
cover 4, and an unannotated one a box of no width.

Video i depends on (seed, photographs, i) alone: same seed, same bytes, whatever the number of workers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from data.generators.single_target import TargetFrame, Trap, target_frames
from data.parallel import WorkerPool
from data.photos import Split
from data.synthetic_video import VideoSpec

Got10kSplit = Literal["train", "val"]

# Eighths in words of the data set: 8 is all of the target, 4 is 45 to 60 % of it, 0 nothing.
_COVER: dict[Trap | None, int] = {None: 8, "unannotated": 8, "cut": 4, "hidden": 0, "gone": 0}


def write_got10k(
    root: Path,
    videos: int,
    seed: int,
    split: Got10kSplit = "train",
    photographs: Split = "train",
    spec: VideoSpec | None = None,
    traps: bool = False,
    workers: int = 1,
) -> Path:
    """Write the split of `videos` videos under `root`; returns `root`."""
    spec = spec or VideoSpec()
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    write = partial(_write_video, folder=folder, split=split, seed=seed, photographs=photographs, spec=spec, traps=traps)
    with WorkerPool(workers) as pool:
        names = list(pool.map(write, range(videos)))
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def _write_video(
    index: int, *, folder: Path, split: Got10kSplit, seed: int, photographs: Split, spec: VideoSpec, traps: bool
) -> str:
    name = f"GOT-10k_{split.capitalize()}_{index + 1:06d}"
    video = folder / name
    video.mkdir(exist_ok=True)
    frames = list(target_frames(spec, seed, photographs, index, traps))
    for number, frame in enumerate(frames, 1):
        frame.image.save(video / f"{number:08d}.jpg", quality=spec.scene.jpeg_quality, subsampling=0)
    columns = {
        "groundtruth.txt": [_box(frame) for frame in frames],
        "absence.label": [str(int(frame.trap == "gone")) for frame in frames],
        "cover.label": [str(_COVER[frame.trap]) for frame in frames],
        "cut_by_image.label": [str(int(frame.trap == "cut")) for frame in frames],
        "meta_info.ini": _description(frames[0]),
    }
    for file, lines in columns.items():
        (video / file).write_text("".join(f"{line}\n" for line in lines))
    return name


def _box(frame: TargetFrame) -> str:
    """`x,y,width,height`; the first pixel is (1, 1)."""
    if frame.trap == "gone":
        return "-1,-1,-1,-1"
    x1, y1, x2, y2 = frame.corners
    width = 0 if frame.trap == "unannotated" else x2 - x1
    return ",".join(f"{value:.4f}" for value in (x1 + 1, y1 + 1, width, y2 - y1))


def _description(frame: TargetFrame) -> list[str]:
    return [
        "[METAINFO]",
        "url: none (generated)",
        "begin: 00:00:00",
        "end: 00:00:01",
        "anno_fps: 10Hz",
        f"object_class: {frame.target.shape}",
        "motion_class: jumping",
        "major_class: plane figure",
        "root_class: object",
        "motion_adverb: suddenly",
        f"resolution: {frame.image.size}",
    ]

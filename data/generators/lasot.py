"""Writes synthetic videos in LaSOT's layout: a folder a class (the target's shape), one-based integer boxes, flag files.

    ROOT/star/star-1/{img/00000001.jpg …, groundtruth.txt, full_occlusion.txt, out_of_view.txt}
    ROOT/testing_set.txt            once the split "test" is written

Videos of "train" have odd numbers, those of "test" even ones: both fit into one root. Distractors are painted, not
annotated. With `traps` (see `single_target`): a hidden target is flagged and keeps its box, one that is gone is flagged and
has the box 0,0,0,0, one that is cut has a negative x, and an unannotated one a box of no width, without a flag.

Video i depends on (seed, photographs, i) alone: same seed, same bytes, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

from data.generators.single_target import TargetFrame, target_frames
from data.parallel import WorkerPool
from data.photos import Split
from data.synthetic_video import VideoSpec

LasotSplit = Literal["train", "test"]

_FIRST_NUMBER: dict[LasotSplit, int] = {"train": 1, "test": 2}


def write_lasot(
    root: Path,
    videos: int,
    seed: int,
    split: LasotSplit = "train",
    photographs: Split = "train",
    spec: VideoSpec | None = None,
    traps: bool = False,
    workers: int = 1,
) -> Path:
    """Write `videos` videos of a split under `root`, beside those of the other split; returns `root`."""
    spec = spec or VideoSpec()
    root.mkdir(parents=True, exist_ok=True)
    write = partial(
        _write_video,
        root=root,
        first_number=_FIRST_NUMBER[split],
        seed=seed,
        photographs=photographs,
        spec=spec,
        traps=traps,
    )
    with WorkerPool(workers) as pool:
        names = sorted(pool.map(write, range(videos)))
    if split == "test":
        (root / "testing_set.txt").write_text("\n".join(names))  # the official list has no line end at its end
    return root


def _write_video(
    index: int, *, root: Path, first_number: int, seed: int, photographs: Split, spec: VideoSpec, traps: bool
) -> str:
    frames = list(target_frames(spec, seed, photographs, index, traps))
    category = frames[0].target.shape
    name = f"{category}-{first_number + 2 * index}"
    images = root / category / name / "img"
    images.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, 1):
        frame.image.save(images / f"{number:08d}.jpg", quality=spec.scene.jpeg_quality, subsampling=0)
    (images.parent / "groundtruth.txt").write_text("".join(f"{_box(frame)}\n" for frame in frames))
    (images.parent / "full_occlusion.txt").write_text(_flags(frame.trap == "hidden" for frame in frames))
    (images.parent / "out_of_view.txt").write_text(_flags(frame.trap == "gone" for frame in frames))
    return name


def _box(frame: TargetFrame) -> str:
    """`x,y,width,height`; the first pixel is (1, 1)."""
    if frame.trap == "gone":
        return "0,0,0,0"
    x1, y1, x2, y2 = (round(value) for value in frame.corners)
    width = 0 if frame.trap == "unannotated" else x2 - x1
    return f"{x1 + 1},{y1 + 1},{width},{y2 - y1}"


def _flags(flagged: Iterable[bool]) -> str:
    return ",".join(str(int(flag)) for flag in flagged) + "\n"

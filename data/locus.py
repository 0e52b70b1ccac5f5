"""LOCUS cue search: chooses boxes of COCO images as cues, cuts them, and writes the samples.

    Instances ─► CuePool: every box, its size bin, its fate ─► choose: the mix, seeded ─► cut (processes) ─► Parquet
                                                                  ▲                          │
                                                                  └── images that failed ◄───┘   their cues are replaced

The answer to a cue is the region that was cropped: whole pixels, padding included. Size bins, the smallest crop and the
mix look at the box before padding. No image serves both splits. All choices follow from the seed and the annotation file
alone, so the bytes written are the same with any number of workers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.box import Box, Frame, iou
from data.build_report import REPORT_NAME, BuildReport, Filled, sha256_of
from data.coco import Instances, Verdict, read_instances
from data.config import LocusConfig
from data.cue_pool import Fate, choose, object_pool, quotas, random_pool
from data.cues import CuePlan, CutScenes, CutSettings, ScenePlan, cut_scenes
from data.parallel import WorkerPool
from data.store_writer import DatasetWriter

# Scenes that travel to a worker together. Fixed, because the rows of a chunk stay together in the files.
_SCENES_PER_CHUNK = 16
# Another box that covers the cue's region this well is the same object annotated twice, not a distractor.
_SAME_OBJECT_IOU = 0.9
# Row groups are what a reader decodes for one sample: small where the scenes' bytes are inside.
_ROWS_PER_GROUP = {"path": 64, "bytes": 8}

Progress = Callable[[str, int, int], None]


def build_locus(
    annotations: Path,
    images: Path,
    out: Path,
    config: LocusConfig,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress = lambda split, kept, wanted: None,
) -> BuildReport:
    """Build the dataset folder `out`; `progress(split, kept, wanted)` is called as samples are written.

    Raises ValueError when the inputs cannot be read at all, or when a split that was asked for gets no sample.
    """
    if not images.is_dir():
        raise ValueError(f"image folder {images} does not exist")
    with DatasetWriter(out, images, overwrite, _ROWS_PER_GROUP[config.scene_storage]) as writer, WorkerPool(workers) as pool:
        build = _LocusBuild(read_instances(annotations), images, config, writer, pool, progress)
        report = build.run()
        writer.write_json(REPORT_NAME, report.as_json())
    return report


class _LocusBuild:
    """One build: the pool of boxes, who was chosen, and where the samples go."""

    def __init__(
        self,
        instances: Instances,
        images: Path,
        config: LocusConfig,
        writer: DatasetWriter,
        workers: WorkerPool,
        progress: Progress,
    ) -> None:
        self.instances = instances
        self.config = config
        self.writer = writer
        self.workers = workers
        self.progress = progress
        self.settings = CutSettings(images, config.cue_format, config.jpeg_quality, config.scene_storage)
        self.pool = object_pool(instances, config) if config.source == "object" else random_pool(instances, config)
        rng = np.random.default_rng([config.seed, 0])
        self.order_N = rng.permutation(len(self.pool.fates))
        self.draws_N2 = rng.random((len(self.pool.fates), 2))
        self.neighbours = _Neighbours(instances)
        self.problems: Counter[str] = Counter(instances.dropped_images)

    def run(self) -> BuildReport:
        blocked_M = np.zeros(len(self.instances.image_ids), dtype=np.bool_)
        # Validation first: its few images are then closed to training.
        splits = {}
        for split, samples in (("validation", self.config.validation_samples), ("train", self.config.train_samples)):
            if samples:
                splits[split] = self._fill(split, quotas(samples, self.config.mix), blocked_M)
        report = BuildReport(
            builder="locus",
            config=_config_as_json(self.config),
            source_sha256={self.instances.path.name: sha256_of(self.instances.path)},
            record_name="annotations" if self.config.source == "object" else "random boxes",
            records=len(self.pool.fates),
            dropped=self.pool.dropped(),
            unused=self.pool.unused,
            splits=dict(reversed(splits.items())),
            images=dict(sorted(self.problems.items())),
        )
        _refuse_empty(report)
        return report

    def _fill(self, split: str, wanted: dict[str, int], blocked_M: NDArray[np.bool_]) -> dict[str, Filled]:
        """Write the split; blocks the images it used."""
        kept: Counter[str] = Counter()
        used_M = np.zeros(len(blocked_M), dtype=np.int64)
        total = sum(wanted.values())
        while True:
            missing = {name: count - kept[name] for name, count in wanted.items()}
            rows_K = choose(self.pool, self.order_N, missing, blocked_M, used_M, self.config.max_per_image)
            if not len(rows_K):
                break
            problems: dict[int, Fate] = {}
            for scenes, cut in self._cut(rows_K):
                problems |= self._account(scenes, cut, kept, used_M)
                self.writer.write(split, cut.rows)
                self.progress(split, kept.total(), total)
            self.pool.drop_images(problems)
            self.problems.update(fate.reason for fate in problems.values())
        blocked_M |= used_M > 0
        return {name: Filled(count, kept[name]) for name, count in wanted.items()}

    def _cut(self, rows_K: NDArray[np.int64]) -> Iterator[tuple[Sequence[ScenePlan], CutScenes]]:
        planned: list[Sequence[ScenePlan]] = []

        def chunks() -> Iterator[Sequence[ScenePlan]]:
            for chunk in _chunks(self._plan(rows_K), _SCENES_PER_CHUNK):
                planned.append(chunk)
                yield chunk

        for cut in self.workers.map(partial(cut_scenes, self.settings), chunks()):
            yield planned.pop(0), cut

    def _account(
        self, scenes: Sequence[ScenePlan], cut: CutScenes, kept: Counter[str], used_M: NDArray[np.int64]
    ) -> dict[int, Fate]:
        """Book what was cut; returns the fate of the images that could not be, by image row."""
        problems: dict[int, Fate] = {}
        for scene, problem in zip(scenes, cut.problems, strict=True):
            if problem is not None:
                problems[scene.image_row] = Fate[problem.upper()]
                continue
            for cue in scene.cues:
                self.pool.fates[cue.row] = Fate.KEPT
                kept[str(cue.metadata["bin"])] += 1
            used_M[scene.image_row] += len(scene.cues)
        return problems

    def _plan(self, rows_K: NDArray[np.int64]) -> Iterator[ScenePlan]:
        """One plan a scene; `rows_K` come image by image."""
        image_rows_K = self.pool.image_rows[rows_K]
        starts = np.flatnonzero(np.diff(image_rows_K, prepend=-1))
        for rows in np.split(rows_K, starts[1:]):
            image_row = int(self.pool.image_rows[rows[0]])
            width, height = self.instances.image_sizes[image_row].tolist()
            cues = tuple(self._plan_cue(int(row), image_row, Frame.original(width, height)) for row in rows)
            yield ScenePlan(image_row, self.instances.file_names[image_row], width, height, cues)

    def _plan_cue(self, row: int, image_row: int, frame: Frame) -> CuePlan:
        bin_name = self.pool.bin_names[self.pool.bins[row]]
        region, size = _region_and_size(
            self.pool.boxes[row].tolist(), frame, self.draws_N2[row].tolist(), self.config, bin_name
        )
        image_id = int(self.instances.image_ids[image_row])
        metadata: dict[str, Any] = {"bin": bin_name, "area_share": float(self.pool.shares[row]), "image_id": image_id}
        if self.config.source == "random_crop":
            return CuePlan(row, f"locus-{image_id}-random-{row}", region, size, (), metadata)
        metadata |= self._object_metadata(row)
        distractors = self.neighbours.distractors(row, Box(*region, frame))
        return CuePlan(row, f"locus-{metadata['annotation_id']}", region, size, distractors, metadata)

    def _object_metadata(self, row: int) -> dict[str, Any]:
        category = self.instances.categories[int(self.instances.category_ids[row])]
        metadata: dict[str, Any] = {"annotation_id": int(self.instances.annotation_ids[row]), "category": category}
        if attributes := self.instances.attributes.get(row):
            metadata |= {"attributes": attributes, "rationale": describe(attributes, category)}
        return metadata


class _Neighbours:
    """Finds the usable boxes of the same category in the same image."""

    def __init__(self, instances: Instances) -> None:
        self.instances = instances
        usable = np.flatnonzero(instances.verdicts == Verdict.OK)
        self.rows_K = usable[np.argsort(instances.image_rows[usable], kind="stable")]
        self.images_K = instances.image_rows[self.rows_K]

    def distractors(self, row: int, region: Box) -> tuple[tuple[float, float, float, float], ...]:
        instances = self.instances
        first, last = np.searchsorted(self.images_K, instances.image_rows[row] + np.array([0, 1]))
        boxes = [
            _box(instances.boxes[other].tolist(), region.frame)
            for other in self.rows_K[first:last]
            if other != row and instances.category_ids[other] == instances.category_ids[row]
        ]
        return tuple(box.corners for box in boxes if iou(box, region) < _SAME_OBJECT_IOU)


def _box(corners: Sequence[float], frame: Frame) -> Box:
    x1, y1, x2, y2 = corners
    return Box(x1, y1, x2, y2, frame)


def describe(attributes: dict[str, Any], category: str) -> str:
    """An object in words: {"color": "red", "pattern": "striped"} of a "star" is "a red striped star"."""
    words = " ".join([*(value for value in attributes.values() if isinstance(value, str) and value), category])
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def _region_and_size(
    box: Sequence[float], frame: Frame, draws: Sequence[float], config: LocusConfig, bin_name: str
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """The whole-pixel region to crop and the size to scale it to; `draws` in [0, 1) choose padding and scale."""
    x1, y1, x2, y2 = box
    padding, scale = 0.0, 1.0
    if bin_name in config.augmented_bins:
        padding = config.padding[0] + draws[0] * (config.padding[1] - config.padding[0])
        scale = config.scale[0] + draws[1] * (config.scale[1] - config.scale[0])
    pad_x, pad_y = padding * (x2 - x1), padding * (y2 - y1)
    left, top = max(0, math.floor(x1 - pad_x)), max(0, math.floor(y1 - pad_y))
    right, bottom = min(frame.width, math.ceil(x2 + pad_x)), min(frame.height, math.ceil(y2 + pad_y))
    width, height = right - left, bottom - top
    scale = max(scale, min(1.0, config.min_crop / min(width, height)))
    return (left, top, right, bottom), (max(1, round(width * scale)), max(1, round(height * scale)))


def _chunks(plans: Iterator[ScenePlan], size: int) -> Iterator[Sequence[ScenePlan]]:
    chunk: list[ScenePlan] = []
    for plan in plans:
        chunk.append(plan)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _config_as_json(config: LocusConfig) -> dict[str, Any]:
    return asdict(config) | {"excluded_images": len(config.excluded_images)}


def _refuse_empty(report: BuildReport) -> None:
    for split, kinds in report.splits.items():
        if not sum(filled.kept for filled in kinds.values()):
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in report.dropped.items()) or "it has no boxes"
            raise ValueError(f"not one {split} sample could be made of {report.records:,} {report.record_name}: {reasons}")

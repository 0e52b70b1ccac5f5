"""Samples as Parquet: one row a sample, readable by `datasets.load_dataset`, random access without loading it all.

    DIR/train-00000.parquet  DIR/train-00001.parquet  …  DIR/validation-00000.parquet  DIR/dataset.json

A dataset folder appears whole or not at all: it is written beside its place under a temporary name, then renamed.
Image paths are relative to the `image_root` of dataset.json, so moving the images is one edit, not a rebuild.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.box import Box, Frame
from data.sample import EncodedImage, ImagePart, PromptPart, Sample, SupportBoxPart, TextPart

FORMAT_VERSION = 1
CARD_NAME = "dataset.json"

_BOX = pa.list_(pa.float64())
_IMAGE = pa.struct([("width", pa.int32()), ("height", pa.int32()), ("bytes", pa.binary()), ("path", pa.string())])
_PART = pa.struct([("kind", pa.string()), ("text", pa.string()), ("image", pa.int32()), ("box", _BOX)])

# Boxes are in original pixels of their image: a prompt's support box of `image`, the others of `target_image`.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("images", pa.list_(_IMAGE)),
        ("prompt", pa.list_(_PART)),
        ("target", _BOX),
        ("target_image", pa.int32()),
        ("distractors", pa.list_(_BOX)),
        ("metadata", pa.string()),  # JSON object
    ]
)


def sample_to_row(sample: Sample) -> dict[str, Any]:
    """A sample as one row of SCHEMA. Raises ValueError when its metadata is not JSON."""
    try:
        metadata = json.dumps(dict(sample.metadata), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample {sample.id}: metadata must be plain JSON values: {error}") from error
    images = [
        {"width": image.width, "height": image.height, "bytes": image.encoded, "path": image.path} for image in sample.images
    ]
    return {
        "id": sample.id,
        "source": sample.source,
        "images": images,
        "prompt": [_part_to_row(part) for part in sample.prompt],
        "target": list(sample.target.corners),
        "target_image": sample.target_image,
        "distractors": [list(box.corners) for box in sample.distractors],
        "metadata": metadata,
    }


def row_to_sample(row: Mapping[str, Any], image_root: Path) -> Sample:
    """The sample of a row; relative image paths are resolved against `image_root`."""
    images = tuple(
        EncodedImage(
            width=image["width"],
            height=image["height"],
            encoded=image["bytes"],
            path=None if image["path"] is None else str(image_root / image["path"]),
        )
        for image in row["images"]
    )
    frame = images[row["target_image"]].frame
    return Sample(
        id=row["id"],
        source=row["source"],
        images=images,
        prompt=tuple(_row_to_part(part, images) for part in row["prompt"]),
        target=_box(row["target"], frame),
        target_image=row["target_image"],
        distractors=tuple(_box(corners, frame) for corners in row["distractors"]),
        metadata=json.loads(row["metadata"]),
    )


def samples_to_table(samples: Iterable[Sample]) -> pa.Table:
    return pa.Table.from_pylist([sample_to_row(sample) for sample in samples], schema=SCHEMA)


def _box(corners: Sequence[float], frame: Frame) -> Box:
    x1, y1, x2, y2 = corners
    return Box(x1, y1, x2, y2, frame)


def _part_to_row(part: PromptPart) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"kind": "text", "text": text, "image": None, "box": None}
        case ImagePart(index):
            return {"kind": "image", "text": None, "image": index, "box": None}
        case SupportBoxPart(index, box):
            return {"kind": "support_box", "text": None, "image": index, "box": list(box.corners)}


def _row_to_part(row: Mapping[str, Any], images: Sequence[EncodedImage]) -> PromptPart:
    match row["kind"]:
        case "text":
            return TextPart(row["text"])
        case "image":
            return ImagePart(row["image"])
        case "support_box":
            return SupportBoxPart(row["image"], _box(row["box"], images[row["image"]].frame))
        case kind:
            raise ValueError(f"unknown kind of prompt part {kind!r}; this version knows text, image and support_box")


class SampleStore(Sequence[Sample]):
    """One split of a dataset folder as a read-only sequence; holds one row group in memory, whatever the size.

    Threads may read it side by side.
    Raises ValueError when the folder has no such split, or a file is damaged or not of this format.
    """

    def __init__(self, directory: str | Path, split: str = "train", image_root: str | Path | None = None) -> None:
        self.directory = Path(directory)
        self.split = split
        root = Path(image_root) if image_root is not None else read_image_root(self.directory)
        self.image_root = Path(os.path.normpath(root))
        self._files = [_open_shard(path) for path in shard_paths(self.directory, split)]
        # Row group g of the whole split is group `_groups[g][1]` of file `_groups[g][0]` and starts at row `_starts[g]`.
        self._groups = [(file, group) for file, shard in enumerate(self._files) for group in range(shard.num_row_groups)]
        self._starts = _row_starts(self._files)
        self._cached_group = -1
        self._cached_table: pa.Table | None = None
        self._reading = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        group = bisect_right(self._starts, row) - 1
        table = self._table(group)
        return row_to_sample(table.slice(row - self._starts[group], 1).to_pylist()[0], self.image_root)

    def most_images(self) -> int:
        """The largest number of images of a sample, from the lists' lengths alone: no image is read."""
        widths = "images.list.element.width"
        counts: list[int] = [
            pc.max(pc.list_value_length(column)).as_py()
            for shard in self._files
            for column in [shard.read(columns=[widths], use_threads=False).column("images")]
            if len(column)
        ]
        return max(counts)

    def _table(self, group: int) -> pa.Table:
        with self._reading:
            if self._cached_table is None or group != self._cached_group:
                file, index = self._groups[group]
                self._cached_table = self._files[file].read_row_group(index, use_threads=False)
                self._cached_group = group
            return self._cached_table

    def __reduce__(self) -> tuple[type[SampleStore], tuple[Path, str, Path]]:
        return (SampleStore, (self.directory, self.split, self.image_root))


def shard_paths(directory: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in order. Raises ValueError when there are none."""
    paths = sorted(directory.glob(f"{split}-*.parquet"))
    if not paths:
        found = sorted({path.name.rsplit("-", 1)[0] for path in directory.glob("*-*.parquet")})
        splits = f"it has {', '.join(found)}" if found else "build one with `python -m data.build`"
        raise ValueError(f"no {split!r} split in dataset folder {directory}: {splits}")
    return paths


def read_image_root(directory: Path) -> Path:
    """The folder that relative image paths of the dataset start from: dataset.json's, or the dataset folder itself."""
    card = directory / CARD_NAME
    if not card.exists():
        return directory
    content = json.loads(card.read_text())
    if content["format"] != FORMAT_VERSION:
        raise ValueError(f"{card} has format {content['format']}, this version reads {FORMAT_VERSION}: rebuild the dataset")
    return directory / str(content["image_root"])


def _open_shard(path: Path) -> pq.ParquetFile:
    try:
        shard = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    if missing := set(SCHEMA.names) - set(shard.schema_arrow.names):
        raise ValueError(f"{path} is not a file of samples: it lacks {', '.join(sorted(missing))}")
    return shard


def _row_starts(files: Sequence[pq.ParquetFile]) -> list[int]:
    starts = [0]
    for shard in files:
        for group in range(shard.num_row_groups):
            starts.append(starts[-1] + shard.metadata.row_group(group).num_rows)
    return starts

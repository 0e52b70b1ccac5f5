"""Writes a dataset folder: streaming Parquet shards, and the whole folder appears at once or not at all.

    with DatasetWriter(out, image_root=images) as writer:
        for table in tables:
            writer.write("train", table)

Files are written to a hidden folder beside `out`. Leaving the block normally renames it to `out`; leaving it by an
exception, Ctrl-C included, removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from data.sample import Sample
from data.store import CARD_NAME, FORMAT_VERSION, SCHEMA, samples_to_table

# Texts repeat from row to row and compress to nothing as a dictionary; encoded images never repeat.
_DICTIONARY_COLUMNS = ["source", "prompt.list.element.kind", "prompt.list.element.text"]


class _SplitWriter:
    """The open shard of one split and the rows that do not fill a row group yet."""

    def __init__(self, folder: Path, split: str, rows_per_group: int, rows_per_shard: int) -> None:
        self.folder = folder
        self.split = split
        self.rows_per_group = rows_per_group
        self.groups_per_shard = max(1, rows_per_shard // rows_per_group)
        self.groups = 0
        self.pending = SCHEMA.empty_table()
        self.shard: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        self.pending = pa.concat_tables([self.pending, table])
        while self.pending.num_rows >= self.rows_per_group:
            self._write_group(self.pending.slice(0, self.rows_per_group))
            self.pending = self.pending.slice(self.rows_per_group)

    def close(self) -> None:
        if self.pending.num_rows:
            self._write_group(self.pending)
        if self.shard is not None:
            self.shard.close()

    def _write_group(self, table: pa.Table) -> None:
        if self.groups % self.groups_per_shard == 0:
            if self.shard is not None:
                self.shard.close()
            path = self.folder / f"{self.split}-{self.groups // self.groups_per_shard:05d}.parquet"
            self.shard = pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=_DICTIONARY_COLUMNS)
        assert self.shard is not None
        # One contiguous chunk a column: the bytes then depend on the rows alone, not on the tables they came in.
        self.shard.write_table(table.combine_chunks(), row_group_size=self.rows_per_group)
        self.groups += 1


class DatasetWriter:
    """Context manager that builds a dataset folder at `out`.

    `image_root` is where relative image paths start; default the dataset folder. Raises ValueError when `out` exists
    and `overwrite` is not set. A row group is what a reader decodes to get one sample, so keep it near a megabyte.
    """

    def __init__(
        self,
        out: str | Path,
        image_root: str | Path | None = None,
        overwrite: bool = False,
        rows_per_group: int = 64,
        rows_per_shard: int = 8192,
    ) -> None:
        self.out = Path(out).resolve()
        self.image_root = self.out if image_root is None else Path(image_root).resolve()
        self.overwrite = overwrite
        self.rows_per_group = rows_per_group
        self.rows_per_shard = rows_per_shard
        self._splits: dict[str, _SplitWriter] = {}

    def __enter__(self) -> Self:
        if self.out.exists() and not self.overwrite:
            raise ValueError(f"{self.out} exists already; choose another folder or overwrite it (--overwrite)")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.partial-", dir=self.out.parent))
        return self

    def write(self, split: str, table: pa.Table) -> None:
        """Append rows to a split; see `samples_to_table`."""
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self.folder, split, self.rows_per_group, self.rows_per_shard)
        self._splits[split].write(table)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for split in self._splits.values():
                split.close()
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _publish(self) -> None:
        self.write_json(CARD_NAME, {"format": FORMAT_VERSION, "image_root": self._card_root()})
        self.folder.chmod(0o755)
        if self.out.exists():
            replaced = self.folder.with_name(f"{self.folder.name}-replaced")
            self.out.rename(replaced)
            self.folder.rename(self.out)
            shutil.rmtree(replaced)
        else:
            self.folder.rename(self.out)

    def _card_root(self) -> str:
        """Relative when images and dataset share a parent folder, so that the two can move together."""
        if self.image_root.is_relative_to(self.out.parent):
            return os.path.relpath(self.image_root, self.out)
        return str(self.image_root)


def write_samples(out: str | Path, splits: Mapping[str, Iterable[Sample]], overwrite: bool = False) -> None:
    """Write samples, split by split, as a dataset folder: `write_samples("my_data", {"train": samples})`."""
    with DatasetWriter(out, overwrite=overwrite) as writer:
        for split, samples in splits.items():
            writer.write(split, samples_to_table(samples))

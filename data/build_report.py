"""What a dataset build kept and dropped, and why: a table for the terminal and build.json for programs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

REPORT_NAME = "build.json"


@dataclass(frozen=True, slots=True)
class Filled:
    """How many samples of one kind were asked for and made."""

    wanted: int
    kept: int


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The account of a build. Every record read is dropped, unused or kept: the counts add up to `records`.

    `source_sha256` maps the names of the source files to their hashes; `images` counts images by what was wrong with them.
    """

    builder: str
    config: Mapping[str, Any]
    source_sha256: Mapping[str, str]
    record_name: str
    records: int
    dropped: Mapping[str, int]
    unused: int
    splits: Mapping[str, Mapping[str, Filled]]
    images: Mapping[str, int]

    @property
    def kept(self) -> int:
        return sum(filled.kept for kinds in self.splits.values() for filled in kinds.values())

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        """Kept and dropped, with reasons; a split that could not be filled says by how much."""
        table = Table(title=f"{self.builder}: what became of {self.records:,} {self.record_name}", title_justify="left")
        table.add_column("")
        table.add_column("count", justify="right")
        table.add_column("asked for", justify="right")
        for split, kinds in self.splits.items():
            for kind, filled in kinds.items():
                short = filled.wanted - filled.kept
                note = f"{filled.wanted:,}" + (f"  ({short:,} short)" if short else "")
                table.add_row(f"kept, {split}, {kind}", f"{filled.kept:,}", note, style="bold yellow" if short else "green")
        table.add_section()
        for reason, count in sorted(self.dropped.items(), key=lambda item: -item[1]):
            table.add_row(f"dropped, {reason.replace('_', ' ')}", f"{count:,}", "")
        if self.unused:
            table.add_row("usable, not needed", f"{self.unused:,}", "")
        if self.images:
            table.add_section()
        for reason, count in self.images.items():
            table.add_row(f"images, {reason.replace('_', ' ')}", f"{count:,}", "")
        return table


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The account of a FOCUS build: that of every builder, and frames moved, categories and videos a split, damaged tracks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from data.build_report import BuildReport


@dataclass(frozen=True, slots=True)
class SplitContents:
    """What an output split shows."""

    videos: int
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FocusReport(BuildReport):
    """Records are episodes: tracks × shot counts. `damage` and `unusable` hold the first messages only.

    `shared_categories` are those that both splits show; `unmatched_exclusions` are excluded names that no track has.
    """

    sources: tuple[str, ...]
    tracks: int
    moved_frames: int
    contents: Mapping[str, SplitContents]
    damaged_tracks: int
    damage: tuple[str, ...]
    unusable: tuple[str, ...]
    shared_categories: tuple[str, ...]
    unmatched_exclusions: tuple[str, ...]

    def table(self) -> Table:
        table = BuildReport.table(self)
        table.add_section()
        table.add_row("tracks read", f"{self.tracks:,}", ", ".join(self.sources))
        for split, shown in self.contents.items():
            table.add_row(f"videos, {split}", f"{shown.videos:,}", f"{len(shown.categories):,} categories")
        if len(self.contents) > 1:
            table.add_row("categories in both splits", f"{len(self.shared_categories):,}", "")
        if self.unmatched_exclusions:
            table.add_row(
                "excluded, of no track", f"{len(self.unmatched_exclusions):,}", ", ".join(self.unmatched_exclusions)
            )
        table.add_row("frames moved", f"{self.moved_frames:,}", "")
        table.add_row("frame rule", "", str(self.config["frame_rule"]))
        table.add_row("absent targets", "", str(self.config["absence_policy"]))
        return table

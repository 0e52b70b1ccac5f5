"""FOCUS: in-context localization episodes from the tracks of official datasets, written as samples.

    sources ─► survey (processes): id, video, category of every track ─► exclusions, output splits
                                                                              │
                     Parquet ◄── samples ◄── make (processes): frames, images, boxes of the tracks that stay

No choice depends on how the work was spread: rows come in the order of the sources and of their tracks, so the bytes
written are the same with any number of workers. A damaged track is dropped and its damage told, never half used.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from data.build_report import REPORT_NAME, Filled, sha256_of
from data.episode_sources import AS_LISTED, ListSource, OpenedSource, open_source
from data.focus_config import FocusConfig, Source
from data.focus_report import FocusReport, SplitContents
from data.focus_samples import DAMAGED, Damage, EntryPlan, Facts, MadeChunk, MakeSettings, make, survey
from data.focus_splits import Located, exclusions, normal, output_splits, unmatched_categories
from data.parallel import WorkerPool
from data.store_writer import DatasetWriter
from data.track import TrackError

# Tracks that travel to a worker together.
_SURVEYED_PER_CHUNK = 16
_MADE_PER_CHUNK = 4
# Row groups are what a reader decodes for one sample: small where the images' bytes are inside.
_ROWS_PER_GROUP = {"path": 64, "bytes": 2}
# Damaged tracks, and unusable records, whose messages build.json tells.
_MESSAGES_KEPT = 20
_LISTED_CONFIG = {"shots": None, "frame_rule": AS_LISTED, "absence_policy": AS_LISTED}

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]


def build_focus(
    sources: Sequence[Source],
    out: Path,
    config: FocusConfig,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> FocusReport:
    """Build the dataset folder `out` from all sources together; `progress(stage, done, total)` counts tracks.

    Raises ValueError when a source cannot be read at all, splits are not as they must be, or there is not one sample;
    with `config.strict`, TrackError for the first damaged track.
    """
    sources = [_resolve(source) for source in sources]
    opened = [open_source(source, config) for source in sources]
    settings = MakeSettings(config, Path(os.path.commonpath([each.image_root for each in opened])))
    with (
        DatasetWriter(out, settings.image_root, overwrite, _ROWS_PER_GROUP[config.image_storage]) as writer,
        WorkerPool(workers) as pool,
    ):
        build = _FocusBuild(sources, opened, settings, writer, pool, progress)
        report = build.run()
        writer.write_json(REPORT_NAME, report.as_json())
    return report


def _resolve(source: Source) -> Source:
    images_root = None if source.images_root is None else source.images_root.resolve()
    return replace(source, root=source.root.resolve(), images_root=images_root)


class _FocusBuild:
    """One build: what every track is, where it goes, and the account of what became of it."""

    def __init__(
        self,
        sources: Sequence[Source],
        opened: Sequence[OpenedSource],
        settings: MakeSettings,
        writer: DatasetWriter,
        workers: WorkerPool,
        progress: Progress,
    ) -> None:
        self.sources = sources
        self.opened = opened
        self.episodes = [source.episodes for source in opened]
        self.settings = settings
        self.config = settings.config
        self.writer = writer
        self.workers = workers
        self.progress = progress
        self.damage: list[Damage] = []
        self.unusable: list[str] = []
        self.dropped: Counter[str] = Counter()
        for source in opened:
            each = source.episodes.samples_per_entry
            self.dropped.update({reason: count * each for reason, count in source.left_out.items()})
        self.wanted: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
        self.kept: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
        self.shown: dict[str, list[Facts]] = {"train": [], "validation": []}
        self.unmatched: list[str] = []
        self.moved = 0

    def run(self) -> FocusReport:
        plans = self._plan(self._survey())
        self._make(plans)
        report = self._report()
        _refuse_empty(report)
        return report

    def _survey(self) -> list[tuple[Any, Located]]:
        """The entries that can be read, and what they are."""
        entries = [(number, entry) for number, source in enumerate(self.opened) for entry in source.entries]
        chunks = _chunks(entries, _SURVEYED_PER_CHUNK)
        found: list[Facts | Damage] = []
        for surveyed in self.workers.map(partial(survey, self.episodes), chunks):
            found += surveyed
            self._stop_if_strict(surveyed)
            self.progress("reading tracks", len(found), len(entries))
        located: list[tuple[Any, Located]] = []
        for (number, entry), facts in zip(entries, found, strict=True):
            if isinstance(facts, Damage):
                self.damage.append(facts)
                self.dropped[DAMAGED] += self.episodes[number].samples_per_entry
            else:
                located.append((entry, Located(number, facts)))
        return located

    def _plan(self, located: Sequence[tuple[Any, Located]]) -> list[EntryPlan]:
        """The tracks that stay, each with its split."""
        tracks = [track for _, track in located]
        reasons = exclusions(tracks, self.config)
        self.unmatched = unmatched_categories(self.config.excluded_categories, tracks)
        for (_, track), reason in zip(located, reasons, strict=True):
            if reason is not None:
                self.dropped[reason] += len(track.facts.kinds)
        staying = [each for each, reason in zip(located, reasons, strict=True) if reason is None]
        splits = output_splits([track for _, track in staying], self.sources, self.config)
        plans = [
            EntryPlan(track.source, entry, split, track.facts) for (entry, track), split in zip(staying, splits, strict=True)
        ]
        for plan in plans:
            self.wanted[plan.split].update(plan.facts.kinds)
        return plans

    def _make(self, plans: Sequence[EntryPlan]) -> None:
        done = Counter[str]()
        totals = Counter(plan.split for plan in plans)
        chunks = _chunks(plans, _MADE_PER_CHUNK)
        for chunk, made in zip(chunks, self.workers.map(partial(make, self.episodes, self.settings), chunks), strict=True):
            self._stop_if_strict(made.damage)
            self.damage += made.damage
            self._account(chunk, made)
            for split, rows in made.rows.items():
                self.writer.write(split, rows)
            for plan in chunk:
                done[plan.split] += 1
                self.progress(plan.split, done[plan.split], totals[plan.split])

    def _account(self, chunk: Sequence[EntryPlan], made: MadeChunk) -> None:
        for plan, outcomes in zip(chunk, made.outcomes, strict=True):
            for outcome in outcomes:
                if outcome.dropped is not None:
                    self.dropped[outcome.dropped] += 1
                    self.unusable += [outcome.message] if outcome.message is not None else []
                else:
                    self.kept[plan.split][outcome.kind] += 1
                    self.moved += outcome.moved
            if any(outcome.dropped is None for outcome in outcomes):
                self.shown[plan.split].append(plan.facts)

    def _stop_if_strict(self, found: Sequence[object]) -> None:
        for each in found:
            if self.config.strict and isinstance(each, Damage):
                raise TrackError(f"{each.message} (--strict stops at the first damaged track)")

    def _report(self) -> FocusReport:
        splits = {
            split: {kind: Filled(count, self.kept[split][kind]) for kind, count in wanted.items()}
            for split, wanted in self.wanted.items()
            if wanted
        }
        listed = all(isinstance(episodes, ListSource) for episodes in self.episodes)
        records = sum(_tracks(source) * source.episodes.samples_per_entry for source in self.opened)
        return FocusReport(
            builder="focus",
            config=_config_as_json(self.config) | (_LISTED_CONFIG if listed else {}),
            source_sha256={str(path): sha256_of(path) for source in self.opened for path in source.files},
            record_name="episodes",
            records=records,
            dropped=dict(sorted(self.dropped.items())),
            unused=0,
            splits=splits,
            images=dict(sorted(Counter(each.problem for each in self.damage if each.problem is not None).items())),
            sources=tuple(source.name for source in self.sources),
            tracks=sum(map(_tracks, self.opened)),
            moved_frames=self.moved,
            contents={split: _contents(facts) for split, facts in self.shown.items() if facts},
            damaged_tracks=len(self.damage),
            damage=tuple(each.message for each in self.damage[:_MESSAGES_KEPT]),
            unusable=tuple(self.unusable[:_MESSAGES_KEPT]),
            shared_categories=_shared_categories(list(self.shown.values())),
            unmatched_exclusions=tuple(self.unmatched),
        )


def _contents(shown: Sequence[Facts]) -> SplitContents:
    videos = {(facts.source, facts.video) for facts in shown}
    return SplitContents(len(videos), tuple(sorted({facts.category for facts in shown})))


def _tracks(source: OpenedSource) -> int:
    """All that it lists, with what its reader leaves out."""
    return len(source.entries) + sum(source.left_out.values())


def _shared_categories(splits: Sequence[Sequence[Facts]]) -> tuple[str, ...]:
    """Categories that every split shows."""
    return tuple(sorted(set.intersection(*({normal(facts.category) for facts in shown} for shown in splits))))


def _chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _config_as_json(config: FocusConfig) -> dict[str, Any]:
    return asdict(config) | {
        "categories": None if config.categories is None else sorted(config.categories),
        "excluded_categories": sorted(config.excluded_categories),
        "disjoint_from": [str(path) for path in config.disjoint_from],
    }


def _refuse_empty(report: FocusReport) -> None:
    if not report.kept:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report.dropped.items()) or "there are no tracks"
        first = f"; the first damage: {report.damage[0]}" if report.damage else ""
        raise ValueError(f"not one sample could be made of {report.records:,} episodes: {reasons}{first}")

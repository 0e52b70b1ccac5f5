"""The results of an evaluation as records: a row a dataset and shot count, their averages, and what was evaluated how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rl.bootstrap import Interval
from rl.evaluation_metrics import Measured, average
from rl.evaluation_sets import EvaluationSet
from rl.policy_folder import PolicyFolder
from rl.records import Sampling
from rl.runlog import ValidationRecord


@dataclass(frozen=True)
class Failure:
    """A sample that was not answered, or could not be judged, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One dataset at one shot count: `records` of the answered samples in order, and their `places` in `asked`."""

    asked: EvaluationSet
    places: tuple[int, ...]
    records: tuple[ValidationRecord, ...]
    failures: tuple[Failure, ...]
    measured: Measured

    @property
    def dataset(self) -> str:
        return self.asked.dataset

    @property
    def shots(self) -> int | None:
        return self.asked.shots

    @property
    def metrics(self) -> Mapping[str, Interval]:
        return self.measured.metrics

    @property
    def reasons(self) -> dict[str, int]:
        """Failures counted by reason, the most frequent first."""
        return dict(Counter(failure.reason for failure in self.failures).most_common())


@dataclass(frozen=True)
class Average:
    """The mean over several datasets at one shot count."""

    shots: int | None
    datasets: tuple[str, ...]
    metrics: Mapping[str, Interval]


@dataclass(frozen=True)
class Subject:
    """What was evaluated, and how."""

    recipe: str
    checkpoint: str | None
    policy: PolicyFolder
    backend: str
    sampling: Sampling
    mode: str
    seed: int
    paper: str | None
    settings: Mapping[str, int | str | None]


@dataclass(frozen=True)
class Results:
    """A whole evaluation."""

    subject: Subject
    rows: tuple[Row, ...]
    seconds: float

    @property
    def averages(self) -> list[Average]:
        """Over the datasets of each shot count that has several, all of them answered."""
        found = []
        for shots in dict.fromkeys(row.shots for row in self.rows):
            rows = [row for row in self.rows if row.shots == shots]
            if len(rows) > 1 and all(row.records for row in rows):
                metrics = average([row.measured for row in rows]).metrics
                found.append(Average(shots, tuple(row.dataset for row in rows), metrics))
        return found

    @property
    def unanswered(self) -> Sequence[Row]:
        """Rows without a single answer: they have no metrics at all."""
        return [row for row in self.rows if not row.records]

"""summary.json: what a run achieved, computed from the files it left, for machines to read.

    {"name": "demo", "seed": 0, "stage": "grpo", "steps": 100, "run_time_s": 291.4,
     "validation": {"greedy": {"start_step": 0, "final_step": 100,
                               "metrics": {"mean_iou": {"start": 0.55, "final": 0.66, "delta": 0.11}, …}}, …},
     "mismatch_max": 3.1e-06, "phases": {"rollout": {"total_s": …, "mean_s": …, "share": …}, …}, …}

The fields at the top describe the last stage of the run; stages before it follow, in the same shape, under
`earlier_stages`. What no phase of a step accounts for is the phase "other".
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

from rl import environment
from rl.runlog import StepMetrics, ValidationRecord, read_metrics, read_validation, write_atomically

FILE = "summary.json"

# One validation sample answered before and after.
Pair = tuple[ValidationRecord, ValidationRecord]

# Phases between the steps, outside `time/step`: they count in the run time, not in the shares of a step.
BETWEEN_STEPS = ("validate", "checkpoint")

# An IoU that moved by less is called unchanged.
CHANGED = 0.1


@dataclass(frozen=True, slots=True)
class Change:
    """A validation metric at the stage's start (the warm start, for GRPO) and at its last validation."""

    start: float
    final: float
    delta: float


@dataclass(frozen=True, slots=True)
class Validation:
    """The first and the last validation with one way of sampling (greedy, sampled)."""

    start_step: int
    final_step: int
    metrics: Mapping[str, Change]


@dataclass(frozen=True, slots=True)
class Paired:
    """The same greedy samples before and after: mean change of IoU, its 95 % interval, and how many moved."""

    samples: int
    iou_delta: float
    iou_delta_ci95: float
    improved: int
    unchanged: int
    worse: int


@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds in a phase over the stage, a step on average, and its share of the training steps' time."""

    total_s: float
    mean_s: float
    share: float | None


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One stage. Throughput is the mean over step time; `lost` and `failure_reasons` are counts over all steps."""

    stage: str
    steps: int
    planned_steps: int | None
    run_time_s: float
    validation: Mapping[str, Validation]
    paired: Paired | None
    mismatch_max: float | None
    mismatch_mean: float | None
    phases: Mapping[str, Phase]
    share_neither_rollout_nor_update: float | None
    samples_per_s: float | None
    tokens_per_s: float | None
    peak_memory_mib: Mapping[str, float]
    lost: Mapping[str, float]
    failure_reasons: Mapping[str, int]
    last: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the report and the summary need to know of the resolved recipe; None where a run saved none."""

    name: str
    seed: int | None
    mismatch_bound: float | None
    stages: tuple[str, ...]
    planned_steps: Mapping[str, int]
    model: str | None
    validation_data: str | None


def read_facts(run_dir: Path) -> RunFacts:
    """From config.yaml; a run that stopped before it was saved keeps its folder's name."""
    path = run_dir / "config.yaml"
    config = OmegaConf.load(path) if path.exists() else OmegaConf.create()
    stages = tuple(OmegaConf.select(config, "stages", default=()))
    return RunFacts(
        name=OmegaConf.select(config, "name", default=run_dir.resolve().name),
        seed=OmegaConf.select(config, "seed"),
        mismatch_bound=OmegaConf.select(config, "mismatch_bound"),
        stages=stages,
        planned_steps={stage: OmegaConf.select(config, f"{stage}.steps") for stage in stages},
        model=OmegaConf.select(config, "model.path"),
        validation_data=OmegaConf.select(config, "data.validation"),
    )


def by_stage(records: Iterable[StepMetrics]) -> dict[str, list[StepMetrics]]:
    """The records of every stage, stages in the order of the run."""
    stages: dict[str, list[StepMetrics]] = {}
    for record in records:
        stages.setdefault(record.stage, []).append(record)
    return stages


def series(records: Sequence[StepMetrics], name: str) -> list[tuple[int, float]]:
    """(step, value) wherever the metric was logged, values that are not finite included."""
    return [(record.step, record.metrics[name]) for record in records if name in record.metrics]


def finite(records: Sequence[StepMetrics], name: str) -> list[float]:
    return [value for _, value in series(records, name) if math.isfinite(value)]


def metric_names(records: Sequence[StepMetrics], prefix: str = "") -> list[str]:
    """All names with the prefix, in the order they first appear."""
    return list(dict.fromkeys(name for record in records for name in record.metrics if name.startswith(prefix)))


def validations(records: Sequence[StepMetrics]) -> dict[str, Validation]:
    """First and last validation by sampling mode. A metric that is missing or not finite at either end is left out."""
    found: dict[str, Validation] = {}
    for mode in dict.fromkeys(name.split("/")[1] for name in metric_names(records, "validation/")):
        prefix = f"validation/{mode}/"
        validated = [record for record in records if any(name.startswith(prefix) for name in record.metrics)]
        first, last = validated[0], validated[-1]
        changes = {}
        for name in metric_names([first], prefix):
            start, final = first.metrics[name], last.metrics.get(name, math.nan)
            if math.isfinite(start) and math.isfinite(final):
                changes[name.removeprefix(prefix)] = Change(start, final, final - start)
        found[mode] = Validation(first.step, last.step, changes)
    return found


def pair_up(start: Iterable[ValidationRecord], final: Iterable[ValidationRecord], mode: str = "greedy") -> list[Pair]:
    """The samples that both validations answered, in the order of the first."""
    after = {record.id: record for record in final if record.mode == mode}
    return [(record, after[record.id]) for record in start if record.mode == mode and record.id in after]


def compare(pairs: Sequence[Pair]) -> Paired | None:
    """Mean IoU change over pairs with the normal 95 % interval 1.96·s/√n; None under two pairs, which have no spread."""
    if len(pairs) < 2:
        return None
    changes = [after.iou - before.iou for before, after in pairs]
    improved = sum(change >= CHANGED for change in changes)
    worse = sum(change <= -CHANGED for change in changes)
    interval = 1.96 * stdev(changes) / math.sqrt(len(changes))
    return Paired(len(changes), fmean(changes), interval, improved, len(changes) - improved - worse, worse)


def step_seconds(record: StepMetrics) -> float:
    """The training step alone; 0 for a record without one, as a validation before the first step is."""
    return record.metrics.get("time/step", 0.0)


def phase_seconds(record: StepMetrics) -> dict[str, float]:
    """Seconds by phase; "other" is what `time/step` holds and no phase of the step accounts for."""
    phases = {
        name.removeprefix("time/"): value
        for name, value in record.metrics.items()
        if name.startswith("time/") and name != "time/step" and math.isfinite(value)
    }
    rest = step_seconds(record) - sum(seconds for name, seconds in phases.items() if name not in BETWEEN_STEPS)
    return phases | {"other": rest} if rest > 0 else phases


def _phases(records: Sequence[StepMetrics]) -> tuple[dict[str, Phase], float | None]:
    """Phases of the stage, and the share of training steps that is neither rollout nor update."""
    per_step = [phase_seconds(record) for record in records]
    totals = {
        name: sum(step.get(name, 0.0) for step in per_step) for name in dict.fromkeys(n for step in per_step for n in step)
    }
    training = sum(seconds for name, seconds in totals.items() if name not in BETWEEN_STEPS)
    phases = {
        name: Phase(
            total_s=seconds,
            mean_s=seconds / sum(name in step for step in per_step),
            share=seconds / training if training and name not in BETWEEN_STEPS else None,
        )
        for name, seconds in totals.items()
    }
    if "rollout" not in phases or "update" not in phases or not training:
        return phases, None
    return phases, 1 - (totals["rollout"] + totals["update"]) / training


def _rate(records: Sequence[StepMetrics], name: str) -> float | None:
    """A throughput over the stage: every step's rate weighted by the step's time."""
    weighted = [
        (record.metrics[name], step_seconds(record))
        for record in records
        if math.isfinite(record.metrics.get(name, math.nan))
    ]
    seconds = sum(weight for _, weight in weighted)
    if not seconds:
        return fmean(rate for rate, _ in weighted) if weighted else None
    return sum(rate * weight for rate, weight in weighted) / seconds


def is_lost_count(name: str) -> bool:
    """Whether the metric counts answers or groups that were lost, to be summed over steps and not averaged."""
    return name.endswith("/failures") or name.startswith("groups/")


def lost_counts(records: Sequence[StepMetrics]) -> dict[str, float]:
    """Totals of `rollout/failures`, `reward/failures`, `groups/dropped`, `groups/without_spread`."""
    return {name: sum(finite(records, name)) for name in metric_names(records) if is_lost_count(name)}


def summarize_stage(records: Sequence[StepMetrics], planned_steps: int | None, pairs: Sequence[Pair]) -> StageSummary:
    """Everything of one stage; `pairs` are the greedy answers of its first and last validation."""
    phases, neither = _phases(records)
    memory = {name: finite(records, name) for name in metric_names(records, "memory/")}
    means = finite(records, "mismatch/mean")
    return StageSummary(
        stage=records[0].stage,
        steps=records[-1].step,
        planned_steps=planned_steps,
        run_time_s=sum(phase.total_s for phase in phases.values()),
        validation=validations(records),
        paired=compare(pairs),
        mismatch_max=max(finite(records, "mismatch/max"), default=None),
        mismatch_mean=fmean(means) if means else None,
        phases=phases,
        share_neither_rollout_nor_update=neither,
        samples_per_s=_rate(records, "throughput/samples_per_s"),
        tokens_per_s=_rate(records, "throughput/tokens_per_s"),
        peak_memory_mib={
            name.removeprefix("memory/").removesuffix("_peak_mib"): max(values) for name, values in memory.items() if values
        },
        lost=lost_counts(records),
        failure_reasons=dict(sum((Counter(record.failures) for record in records), Counter())),
        last={name: value for name, value in records[-1].metrics.items() if math.isfinite(value)},
    )


def greedy_pairs(run_dir: Path, records: Sequence[StepMetrics]) -> list[Pair]:
    """The samples of a stage's first and last greedy validation; none when it validated only once."""
    greedy = validations(records).get("greedy")
    if greedy is None or greedy.start_step == greedy.final_step:
        return []
    start, final = (read_validation(run_dir, records[0].stage, step) for step in (greedy.start_step, greedy.final_step))
    return pair_up(start, final)


def summarize_run(run_dir: Path) -> list[StageSummary]:
    """Every stage, in the order of the run; empty when nothing was logged."""
    facts = read_facts(run_dir)
    return [
        summarize_stage(records, facts.planned_steps.get(stage), greedy_pairs(run_dir, records))
        for stage, records in by_stage(read_metrics(run_dir)).items()
    ]


def build_summary(run_dir: Path) -> dict[str, Any]:
    """The content of summary.json, from config.yaml, environment.json, metrics.jsonl and validation/."""
    facts = read_facts(run_dir)
    stages = [asdict(stage) for stage in summarize_run(run_dir)]
    recorded = environment.read(run_dir)
    return {
        "name": facts.name,
        "seed": facts.seed,
        "device": recorded.device if recorded else None,
        **(stages[-1] if stages else {"stage": None, "steps": 0}),
        "mismatch_bound": facts.mismatch_bound,
        "earlier_stages": stages[:-1],
        "versions": dict(recorded.packages) if recorded else {},
        "environment": asdict(recorded) if recorded else None,
    }


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Write summary.json atomically and return its content."""
    summary = build_summary(run_dir)
    write_atomically(run_dir / FILE, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary

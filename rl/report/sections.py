"""The sections of the report, each a function from a run's records to markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rl.environment import Environment
from rl.report.charts import Bound, Line, dumbbell, histogram, line_chart, stacked_bars
from rl.report.markup import Child, Markup, duration, fixed, join, number, signed, tag
from rl.report.metrics import (
    LOST_TITLES,
    MODE_COLORS,
    PHASE_COLORS,
    VALIDATION_COUNTS,
    VALIDATION_TITLES,
    GroupView,
    grouped,
    in_order,
    view_of,
)
from rl.runlog import StepMetrics
from rl.summary import (
    BETWEEN_STEPS,
    CHANGED,
    Pair,
    Paired,
    RunFacts,
    StageSummary,
    Validation,
    is_lost_count,
    metric_names,
    phase_seconds,
    series,
)

# The most frequent reasons of failure that are listed by name.
REASONS = 20

NAMES_OF_STAGES = {"sft": "SFT", "grpo": "GRPO"}


def limit(value: float) -> str:
    """A limit as its recipe writes it: 0.5, 10⁻⁴."""
    return number(value) if abs(value) < 0.001 else f"{value:g}"


def table(heads: Sequence[str], *bodies: Markup, class_: str = "figures") -> Markup:
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in heads)))
    return tag("table", head, *bodies, class_=class_)


def stage_name(stage: str) -> str:
    return NAMES_OF_STAGES.get(stage, stage)


def section(title: str, *children: Child) -> Markup:
    return tag("section", tag("h2", title), *children)


def header(
    facts: RunFacts, stages: Sequence[StageSummary], records: Sequence[StepMetrics], machine: Environment | None
) -> Markup:
    """Name, what ran, on what, when; and a plain sentence when the run ended early."""
    done = ", ".join(f"{stage_name(stage.stage)} {stage.steps:,} steps" for stage in stages)
    when = datetime.fromtimestamp(records[-1].time, UTC).strftime("%d %B %Y, %H:%M UTC") if records else None
    commit = (
        f"commit {machine.commit[:10]}{' with changes' * machine.uncommitted_changes}"
        if machine and machine.commit
        else None
    )
    seed = f"seed {facts.seed}" if facts.seed is not None else None
    parts = [done or None, facts.model, seed, machine.device if machine else None, commit, when]
    return tag(
        "header",
        tag("p", "Sightline run report", class_="eyebrow"),
        tag("h1", facts.name),
        tag("p", *(tag("span", part) for part in parts if part), class_="facts"),
        ended_early(facts, stages),
    )


def ended_early(facts: RunFacts, stages: Sequence[StageSummary]) -> Markup | None:
    if not stages:
        return tag("p", "This run logged no step: it stopped before its first one, or has only just begun.", class_="notice")
    last = stages[-1]
    missing = [stage for stage in facts.stages if stage not in {summary.stage for summary in stages}]
    short = last.planned_steps is not None and last.steps < last.planned_steps
    if not missing and not short:
        return None
    place = (
        f"at {stage_name(last.stage)} step {last.steps:,} of {last.planned_steps:,}"
        if short
        else f"after {stage_name(last.stage)}"
    )
    rest = f"; {', '.join(map(stage_name, missing))} did not begin" if missing else ""
    return tag("p", f"This run ended {place}{rest}. What follows is what it logged until then.", class_="notice")


def headline(stage: StageSummary, pairs: Sequence[Pair], bound: float | None) -> Markup:
    """The figures that answer whether the run did what it was for."""
    return tag("section", _hero(stage, pairs), _validation_table(stage), _tiles(stage, bound), class_="headline")


def _hero(stage: StageSummary, pairs: Sequence[Pair]) -> Markup | None:
    greedy = stage.validation.get("greedy")
    change = greedy.metrics.get("mean_iou") if greedy else None
    if greedy is None or change is None:
        return tag("p", f"{stage_name(stage.stage)} has not been validated: there is no greedy mean IoU.", class_="lead")
    first = tag("span", fixed(change.start), class_="from")
    if greedy.start_step == greedy.final_step:
        note = f"one validation, at step {greedy.start_step:,}"
        return tag(
            "div",
            tag("h2", "Mean IoU on held-out scenes"),
            tag("p", first, class_="big"),
            tag("p", note, class_="lead"),
            class_="hero",
        )
    paired = stage.paired
    interval = f" ± {fixed(paired.iou_delta_ci95)}" if paired else ""
    sample = f" 95 % interval over {paired.samples:,} paired samples." if paired else ""
    return tag(
        "div",
        tag("h2", "Mean IoU on held-out scenes"),
        tag("p", first, tag("span", "→", class_="arrow"), tag("span", fixed(change.final), class_="to"), class_="big"),
        tag("p", tag("b", f"{signed(change.delta)}{interval}"), class_=f"gain {_sign(change.delta)}"),
        tag("p", f"Greedy, step {greedy.start_step:,} to {greedy.final_step:,}.{sample}", class_="lead"),
        _spread_of_iou(pairs, paired) if paired else None,
        class_="hero",
    )


def _spread_of_iou(pairs: Sequence[Pair], paired: Paired) -> Markup:
    """How the IoU of single samples is spread before and after: a mean hides a crowd at zero."""
    chart = histogram(
        "IoU of every sample before and after", [pair[0].iou for pair in pairs], [pair[1].iou for pair in pairs]
    )
    keys = tag(
        "span", *(tag("span", tag("i", class_=f"key count {name}"), name) for name in ("before", "after")), class_="keys"
    )
    moved = (
        f"{paired.improved:,} improved by {CHANGED:g} or more, {paired.worse:,} worsened, {paired.unchanged:,} in between."
    )
    caption = tag("figcaption", tag("b", "IoU"), tag("span", "samples in each tenth", class_="unit"), keys)
    return join((tag("figure", caption, chart), tag("p", moved, class_="lead")))


def _validation_table(stage: StageSummary) -> Markup | None:
    if not stage.validation:
        return None
    once = all(validation.start_step == validation.final_step for validation in stage.validation.values())
    heads = ("", "start") if once else ("", "start", "final", "change", "")
    bodies = [_validation_rows(mode, validation) for mode, validation in stage.validation.items()]
    return table(heads, *bodies, class_="validation")


def _validation_rows(mode: str, validation: Validation) -> Markup:
    once = validation.start_step == validation.final_step
    when = f"step {validation.start_step:,}" if once else f"step {validation.start_step:,} → {validation.final_step:,}"
    rows = [tag("tr", tag("th", f"{mode}, {when}", colspan=5, scope="rowgroup"), class_="mode")]
    for name in in_order(validation.metrics):
        title, change = VALIDATION_TITLES.get(name, name), validation.metrics[name]
        digits = 0 if name in VALIDATION_COUNTS else 3
        cells = [tag("td", fixed(change.start, digits))]
        if not once:
            told = f"{title}, {mode}: {fixed(change.start)} to {fixed(change.final)}"
            drawn = dumbbell(told, change.start, change.final) if digits and _is_share(change.start, change.final) else None
            sign = _sign(change.delta)
            cells.append(tag("td", fixed(change.final, digits), class_="final"))
            cells.append(tag("td", signed(change.delta, digits), class_=sign if digits else "same"))
            cells.append(tag("td", drawn, class_="drawn"))
        rows.append(tag("tr", tag("th", title, scope="row"), *cells, data_metric=f"validation/{mode}/{name}"))
    return tag("tbody", *rows)


def _sign(delta: float) -> str:
    return "better" if delta > 0 else "worse" if delta < 0 else "same"


def _is_share(*values: float) -> bool:
    return all(0 <= value <= 1 for value in values)


def _tiles(stage: StageSummary, bound: float | None) -> Markup:
    tiles: list[tuple[str, str, str]] = [("Run time", duration(stage.run_time_s), "steps and validations")]
    if stage.mismatch_max is not None:
        gate = "" if bound is None else f"gate at {limit(bound)}"
        tiles.append(("Largest mismatch", number(stage.mismatch_max), gate or "of a token's logprob"))
    if stage.samples_per_s is not None:
        tiles.append(("Answers per second", number(stage.samples_per_s), "over the whole step"))
    if stage.tokens_per_s is not None:
        tiles.append(("Tokens per second", number(stage.tokens_per_s), "over the whole step"))
    if stage.share_neither_rollout_nor_update is not None:
        tiles.append(("Neither rollout nor update", f"{stage.share_neither_rollout_nor_update:.1%}", "of step time"))
    lost = sum(count for name, count in stage.lost.items() if name.endswith("/failures"))
    tiles.append(("Answers lost", f"{lost:,.0f}", "left out, never scored 0"))
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", note))) for name, value, note in tiles),
        class_="tiles",
    )


def _figure(title: str, unit: str, names: str, chart: Markup, legend: Markup | None = None) -> Markup:
    caption = tag("figcaption", tag("b", title), tag("span", unit, class_="unit") if unit else None, legend)
    return tag("figure", caption, chart, data_metric=names)


def _legend(lines: Sequence[Line]) -> Markup | None:
    if len(lines) < 2:
        return None
    return tag("span", *(tag("span", tag("i", class_=f"key {line.color}"), line.label) for line in lines), class_="keys")


def steps_of(records: Sequence[StepMetrics]) -> tuple[int, int]:
    return records[0].step, records[-1].step


def validation_curves(records: Sequence[StepMetrics]) -> Markup | None:
    """One chart a metric, the sampling modes together, every validation a point."""
    names = metric_names(records, "validation/")
    metrics = dict.fromkeys(name.split("/", 2)[2] for name in names if name.count("/") >= 2)
    figures = []
    for metric in in_order(metric for metric in metrics if metric not in VALIDATION_COUNTS):
        full = [name for name in names if name.split("/", 2)[2:] == [metric]]
        lines = [Line(mode := name.split("/")[1], MODE_COLORS.get(mode, "teal"), series(records, name)) for name in full]
        title = VALIDATION_TITLES.get(metric, metric)
        chart = line_chart(title, lines, steps_of(records), smoothed=False)
        figures.append(_figure(title, "", " ".join(full), chart, _legend(lines)))
    return tag("div", *figures, class_="charts") if figures else None


def training_curves(records: Sequence[StepMetrics], bound: float | None) -> Markup | None:
    """Every other series that was logged, in small multiples that share the step axis."""
    names = [name for name in metric_names(records) if not is_lost_count(name)]
    figures = [figure for group, members in grouped(names) for figure in _group_figures(group, members, records, bound)]
    return tag("div", *figures, class_="charts") if figures else None


def _group_figures(
    group: GroupView, names: Sequence[str], records: Sequence[StepMetrics], bound: float | None
) -> list[Markup]:
    steps = steps_of(records)
    if group.prefixes == ("mismatch/",):
        return [_mismatch_figure(names, records, bound)]
    figures = []
    for name in names:
        view = view_of(name)
        line = Line(view.title, group.color, series(records, name))
        chart = line_chart(view.title, [line], steps, zero=view.zero, smoothed=view.noisy)
        figures.append(_figure(view.title, view.unit, name, chart))
    return figures


def _mismatch_figure(names: Sequence[str], records: Sequence[StepMetrics], bound: float | None) -> Markup:
    """|rollout logprob − learner logprob|: the largest and the mean of a step, by decades, under the gate."""
    colors = {"mismatch/max": "red", "mismatch/mean": "slate"}
    lines = [Line(name.removeprefix("mismatch/"), colors.get(name, "teal"), series(records, name)) for name in names]
    gate = Bound(f"gate {limit(bound)}", bound) if bound else None
    chart = line_chart("Logprob mismatch between sampler and learner", lines, steps_of(records), log=True, bound=gate)
    return _figure("Mismatch", "|Δ logprob|, log scale", " ".join(names), chart, _legend(lines))


def phases(stage: StageSummary, records: Sequence[StepMetrics]) -> Markup | None:
    """Where the time goes: stacked seconds of every step, and the table of totals and shares."""
    if not stage.phases:
        return None
    inside = [name for name in (*PHASE_COLORS, *stage.phases) if name in stage.phases and name not in BETWEEN_STEPS]
    colors = {name: PHASE_COLORS.get(name, "slate") for name in dict.fromkeys(inside)}
    rows = [(record.step, phase_seconds(record)) for record in records if "time/step" in record.metrics]
    chart = None
    if rows:
        drawn = stacked_bars("Seconds of every step by phase", rows, colors, (rows[0][0], rows[-1][0]))
        chart = _figure("Step time by phase", "seconds", " ".join(f"time/{name}" for name in (*colors, "step")), drawn)
    neither = stage.share_neither_rollout_nor_update
    lead = f"{neither:.1%} of step time is neither rollout nor update. " if neither is not None else ""
    note = "Validation and checkpoints lie between steps; they have no share of one."
    table = _phase_table(stage, colors)
    return join((tag("p", lead + note, class_="lead"), tag("div", chart, table, class_="time")))


def _phase_table(stage: StageSummary, colors: Mapping[str, str]) -> Markup:
    order = [*colors, *(name for name in stage.phases if name not in colors)]
    rows = []
    for name in order:
        phase = stage.phases[name]
        share = "" if phase.share is None else f"{phase.share:.1%}"
        key = tag("i", class_=f"key {colors[name]}") if name in colors else tag("i", class_="key none")
        cells = (duration(phase.mean_s), duration(phase.total_s), share)
        rows.append(
            tag(
                "tr",
                tag("th", key, name.replace("_", " "), scope="row"),
                *(tag("td", cell) for cell in cells),
                data_metric=f"time/{name}",
            )
        )
    return table(("phase", "mean", "total", "share"), tag("tbody", *rows))


def memory(stage: StageSummary) -> Markup | None:
    """Peak resident memory of every actor, as bars."""
    if not stage.peak_memory_mib:
        return None
    most = max(stage.peak_memory_mib.values())
    rows = [
        tag(
            "tr",
            tag("th", actor, scope="row"),
            tag("td", f"{mib:,.0f}"),
            tag("td", tag("span", class_="bar", style=f"width:{mib / most:.1%}"), class_="drawn"),
            data_metric=f"memory/{actor}_peak_mib",
        )
        for actor, mib in stage.peak_memory_mib.items()
    ]
    return table(("actor", "peak MiB", ""), tag("tbody", *rows))


def losses(stage: StageSummary) -> Markup | None:
    """Answers and groups that were left out, and for which reasons."""
    if not stage.lost:
        return None
    counts = [
        tag("tr", tag("th", LOST_TITLES.get(name, name), scope="row"), tag("td", f"{count:,.0f}"), data_metric=name)
        for name, count in stage.lost.items()
    ]
    by_count = sorted(stage.failure_reasons.items(), key=lambda item: -item[1])
    reasons = [tag("tr", tag("th", reason, scope="row"), tag("td", f"{count:,}")) for reason, count in by_count[:REASONS]]
    if len(by_count) > REASONS:
        rest = sum(count for _, count in by_count[REASONS:])
        reasons.append(
            tag("tr", tag("th", f"{len(by_count) - REASONS:,} other reasons", scope="row"), tag("td", f"{rest:,}"))
        )
    why = table(("reason", "count"), tag("tbody", *reasons)) if reasons else None
    return join((tag("table", tag("tbody", *counts), class_="figures"), why))


def configuration(text: str | None) -> Markup:
    if text is None:
        return tag("p", "The run saved no config.yaml.", class_="lead")
    return tag("details", tag("summary", "config.yaml, as resolved"), tag("pre", text))


def environment_table(machine: Environment | None) -> Markup:
    if machine is None:
        return tag("p", "The run recorded no environment.", class_="lead")
    about = {
        "device": machine.device,
        "memory": f"{machine.memory_gib:g} GiB",
        "system": machine.platform,
        "python": machine.python,
        "commit": f"{machine.commit}{' with uncommitted changes' * machine.uncommitted_changes}"
        if machine.commit
        else "not a git checkout",
        "command": " ".join(machine.command),
    }
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in about.items()]
    packages = [tag("div", tag("dt", name), tag("dd", version)) for name, version in machine.packages.items()]
    return join((tag("dl", *rows, class_="pairs"), tag("dl", *packages, class_="pairs packages")))

"""report.html: a run on one page, self-contained: no script, no request, light and dark.

    run directory ─► runlog, summary, trace ─► sections (charts, gallery, tables, timeline) ─► one HTML file

Whatever the run logged is drawn; what it did not is left out. A run that failed at its first step has a page too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl import environment, trace_file
from rl.report import sections
from rl.report.gallery import Images, dataset_images, gallery, images_of
from rl.report.markup import Child, Markup, join, tag
from rl.report.spans import last_step
from rl.report.timeline import timeline
from rl.runlog import StepMetrics, read_metrics, write_atomically
from rl.summary import Pair, StageSummary, by_stage, greedy_pairs, read_facts, summarize_run
from rl.trace import TORCH
from rl.trace_file import Lane

__all__ = ["FILE", "images_of", "render", "write_report"]

FILE = "report.html"
STYLE = Markup(Path(__file__).with_name("report.css").read_text(encoding="utf-8"))


def _gallery(stage: StageSummary, pairs: Sequence[Pair], images: Images | None) -> Markup | None:
    if not pairs:
        return None
    greedy = stage.validation["greedy"]
    return gallery(pairs, images, (greedy.start_step, greedy.final_step))


def _profiled(stage: str, lanes: Sequence[Lane]) -> Markup | None:
    view = last_step(lanes, stage)
    return timeline(view) if view else None


def _stage(
    stage: StageSummary,
    records: Sequence[StepMetrics],
    pairs: Sequence[Pair],
    bound: float | None,
    images: Images | None,
    lanes: Sequence[Lane],
) -> Markup:
    """All sections of one stage; a section without content is left out."""
    smoothing = (
        "Faint: every step. Strong: exponential moving average over about a twelfth of the steps. "
        "Point at a curve for its values."
    )
    found: Sequence[tuple[str, Child, Child]] = (
        ("Validation", None, sections.validation_curves(records)),
        ("Before and after", None, _gallery(stage, pairs, images)),
        ("Training", tag("p", smoothing, class_="lead"), sections.training_curves(records, bound)),
        ("Where the time goes", None, sections.phases(stage, records)),
        ("One step, on one time axis", None, _profiled(stage.stage, lanes)),
    )
    beside = (("Peak memory", sections.memory(stage)), ("What was left out", sections.losses(stage)))
    small = [sections.section(title, content) for title, content in beside if content]
    wide = [sections.section(title, lead, content) for title, lead, content in found if content]
    return join((*wide, tag("div", *small, class_="beside")))


def render(run_dir: Path, images: Images | None = None) -> str:
    """The page as text. `images` gives a sample's scene and cues; by default those of the dataset that config.yaml names.

    Where that is gone the gallery shows the boxes on empty canvases.
    """
    facts, machine, records = read_facts(run_dir), environment.read(run_dir), read_metrics(run_dir)
    stages, of_stage = summarize_run(run_dir), by_stage(records)
    pairs = {stage: greedy_pairs(run_dir, of_stage[stage]) for stage in of_stage}
    bound = facts.mismatch_bound
    shown = images or dataset_images(facts.validation_data)
    config, trace = run_dir / "config.yaml", run_dir / trace_file.FILE
    lanes = trace_file.read_trace(trace, without=frozenset({TORCH})) if trace.exists() else []
    body: list[Child] = [sections.header(facts, stages, records, machine)]
    if stages:
        body.append(sections.headline(stages[-1], pairs[stages[-1].stage], bound))
    for number, stage in enumerate(reversed(stages)):
        if len(stages) > 1:
            order = "The last stage" if number == 0 else "Before it"
            body.append(tag("p", f"{order}: {sections.stage_name(stage.stage)}", class_="stage"))
        body.append(_stage(stage, of_stage[stage.stage], pairs[stage.stage], bound, shown, lanes))
    body.append(sections.section("Configuration", sections.configuration(config.read_text() if config.exists() else None)))
    body.append(sections.section("Environment", sections.environment_table(machine)))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{facts.name} · Sightline"),
        tag("style", STYLE),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *body)), lang='en')}\n"


def write_report(run_dir: Path, images: Images | None = None) -> Path:
    """Write report.html into the run's folder, atomically."""
    path = run_dir / FILE
    write_atomically(path, render(run_dir, images))
    return path

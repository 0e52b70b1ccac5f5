"""What an evaluation leaves behind: figures for machines, tables for people, and a page that shows the pictures.

    OUT/evaluation.json   every metric with its interval, settings, checkpoint, versions
    OUT/records.jsonl     one sample a line: dataset, shots, boxes in original pixels, the answer's text, or its failure
    OUT/table.md          our rows beside the papers', in percent
    OUT/index.html        the same table and the pictures
    OUT/pictures/*.png    (rl/evaluation_pictures.py)

Every file appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rl import environment
from rl.bootstrap import LEVEL, RESAMPLES, Interval
from rl.evaluation_pictures import Picture
from rl.evaluation_results import Average, Results, Row
from rl.paper_results import PaperResult, paper_results
from rl.report import STYLE
from rl.report.markup import Markup, tag
from rl.runlog import write_atomically

COLUMNS: Mapping[str, str] = {
    "mean_iou": "mIoU",
    "mean_iou_parsed": "mIoU, parsed",
    "parse_rate": "parsed",
    "acc@0.5": "ACC@0.5",
    "acc@0.75": "ACC@0.75",
    "picks_target": "picks target",
}
HEADER = ("dataset", "shots", "model", *COLUMNS.values(), "samples", "failed")
NOTHING = "–"


@dataclass(frozen=True)
class Line:
    """One line of the table: its cells, and whether the figures are a paper's."""

    cells: tuple[str, ...]
    published: bool


def table_lines(results: Results) -> list[Line]:
    """Our row of every dataset and shot count, the papers' below it, the averages at the end."""
    lines = []
    for row in results.rows:
        lines.append(_own_line(row.dataset, row, results.subject.policy.kind))
        published = paper_results(results.subject.paper, row.dataset, row.shots)
        lines += [_paper_line(row.dataset, row.shots, result) for result in published]
    averages = results.averages
    return [*lines, *(_own_line("average", average, results.subject.policy.kind) for average in averages)]


def _own_line(dataset: str, row: Row | Average, model: str) -> Line:
    shots = NOTHING if row.shots is None else str(row.shots)
    samples, failed = (NOTHING, NOTHING)
    if isinstance(row, Row):
        shots += f" (of {row.asked.derived_from})" if row.asked.derived_from else ""
        samples, failed = str(len(row.records)), str(len(row.failures))
    figures = [_percent(row.metrics[name]) if name in row.metrics else NOTHING for name in COLUMNS]
    return Line((dataset, shots, model, *figures, samples, failed), published=False)


def _paper_line(dataset: str, shots: int | None, result: PaperResult) -> Line:
    known = {"mean_iou": result.mean_iou[shots]} | {f"acc@{at:g}": value for at, value in result.accuracy.items()}
    figures = [f"{known[name]:.1f}" if name in known else NOTHING for name in COLUMNS]
    cells = (dataset, NOTHING if shots is None else str(shots), f"paper: {result.method}", *figures, NOTHING, NOTHING)
    return Line(cells, published=True)


def _percent(figure: Interval) -> str:
    """`68.5 [66.0, 71.2]`"""
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def notes(results: Results) -> list[str]:
    """What a reader of the table has to know."""
    subject = results.subject
    lines = [
        f"In percent, with {LEVEL:.0%} percentile bootstrap intervals over samples ({RESAMPLES:,} resamples, "
        f"seed {subject.seed}). mIoU counts an answer without a valid box as 0; “mIoU, parsed” leaves it out.",
        f"Answers: {subject.mode}, backend {subject.backend}, model {subject.policy.path} ({subject.policy.kind}).",
    ]
    if any(row.asked.derived_from for row in results.rows):
        lines.append("“k (of K)”: the dataset has K shots; supports i·(K // k), i < k, of each sample were shown.")
    lines += [
        f"{row.asked.title}: {len(row.failures)} of {len(row.asked)} samples were not answered and are in no metric: "
        + "; ".join(f"{count}× {reason}" for reason, count in list(row.reasons.items())[:3])
        for row in results.rows
        if row.failures
    ]
    lines += [
        f"{row.asked.title}: {listed.kept} of {listed.wanted} records of the list could be asked; a published mean over the "
        "whole list counts the others as 0."
        for row in results.rows
        if (listed := row.asked.listed()) is not None
    ]
    lines += dict.fromkeys(f"average: {', '.join(average.datasets)}, of equal weight." for average in results.averages)
    if any(paper_results(results.subject.paper, row.dataset, row.shots) for row in results.rows):
        lines.append("“paper: …” rows are the papers' published figures on their own splits, not ours.")
    return lines


def markdown(results: Results) -> str:
    """table.md"""
    lines = [_markdown_row(HEADER), _markdown_row(["---"] * 3 + ["---:"] * (len(HEADER) - 3))]
    for line in table_lines(results):
        lines.append(_markdown_row([f"*{cell}*" for cell in line.cells] if line.published else line.cells))
    told = "\n".join(f"- {note.replace('*', chr(92) + '*')}" for note in notes(results))
    return f"# {results.subject.recipe}\n\n" + "\n".join(lines) + f"\n\n{told}\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def console_table(results: Results) -> Table:
    """The table for a terminal: only mean IoU with its interval; columns without any figure are left out."""
    lines = table_lines(results)
    whole = HEADER.index("mIoU")
    kept = [at for at in range(len(HEADER)) if at < 3 or any(line.cells[at] != NOTHING for line in lines)]
    table = Table(title=f"{results.subject.recipe}, in percent, {LEVEL:.0%} intervals", box=SIMPLE_HEAD)
    for at in kept:
        table.add_column(HEADER[at].replace(" ", "\n"), justify="left" if at < 3 else "right", no_wrap=True)
    for line in lines:
        shown = (line.cells[at] if at <= whole else line.cells[at].partition(" [")[0] for at in kept)
        table.add_row(*shown, style="dim" if line.published else None)
    return table


def as_json(results: Results) -> dict[str, Any]:
    """evaluation.json: metrics as fractions of 1."""
    return {
        "subject": asdict(results.subject),
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "method": "percentile", "unit": "sample"},
        "rows": [
            {
                "dataset": row.dataset,
                "folder": str(row.asked.folder),
                "shots": row.shots,
                "derived_from": row.asked.derived_from,
                "samples": len(row.records) + len(row.failures),
                "answered": len(row.records),
                "failures": row.reasons,
                "metrics": _metrics(row.metrics),
                "paper": [
                    {"method": found.method, "mean_iou": found.mean_iou[row.shots] / 100}
                    for found in paper_results(results.subject.paper, row.dataset, row.shots)
                ],
            }
            for row in results.rows
        ],
        "averages": [
            {"shots": average.shots, "datasets": average.datasets, "metrics": _metrics(average.metrics)}
            for average in results.averages
        ],
        "seconds": results.seconds,
        "environment": asdict(environment.capture()),
    }


def _metrics(metrics: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: asdict(figure) for name, figure in metrics.items()}


def _record_lines(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        place = {"dataset": row.dataset, "shots": row.shots}
        for record in row.records:
            yield json.dumps({**place, **asdict(record)}, allow_nan=False)
        for failure in row.failures:
            yield json.dumps({**place, "id": failure.id, "failure": failure.reason})


def page(results: Results, pictures: Sequence[Picture]) -> str:
    """index.html"""
    rows = [
        tag("tr", *(tag("td", cell) for cell in line.cells), class_="published" if line.published else None)
        for line in table_lines(results)
    ]
    table = tag("table", tag("thead", tag("tr", *(tag("th", name) for name in HEADER))), tag("tbody", *rows))
    shown = [
        tag("figure", tag("img", src=picture.file, alt=picture.caption), tag("figcaption", picture.caption))
        for picture in pictures
    ]
    lead = "Images in the prompt's order: given boxes blue, truth green, answer red. Evenly spaced ranks of IoU, best first."
    body = tag(
        "main",
        tag("h1", results.subject.recipe),
        tag("div", table, class_="table"),
        tag("ul", *(tag("li", note) for note in notes(results))),
        tag("p", lead, class_="lead") if shown else None,
        *shown,
    )
    own = Markup(
        "figure{margin:18px 0;padding:10px;overflow-x:auto}.table{overflow-x:auto;margin:18px 0}"
        "tr.published{color:var(--soft)}thead th,tbody td{padding-left:0;padding-right:14px;white-space:nowrap}"
        "td:nth-child(-n+3),thead th:nth-child(-n+3){text-align:left}"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{results.subject.recipe} · evaluation · Sightline"),
        tag("style", STYLE, own),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def write_results(results: Results, pictures: Sequence[Picture], out: Path) -> None:
    """All files but the pictures, which are there already."""
    write_atomically(out / "records.jsonl", "".join(f"{line}\n" for line in _record_lines(results.rows)))
    write_atomically(out / "table.md", markdown(results))
    write_atomically(out / "index.html", page(results, pictures))
    write_atomically(out / "evaluation.json", json.dumps(as_json(results), indent=2, allow_nan=False) + "\n")

"""What an analysis writes: a folder that appears whole or not at all, and the same figures on the console.

OUT/analysis.json    per prompt: shares and shares a token of every class, Attention-in-Box; mean, layers, samples
OUT/split.svg        the split as stacked bars
OUT/heatmaps/        overlays
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from rl.analysis.chart import TITLES, split_chart
from rl.analysis.config import AnalysisConfig
from rl.analysis.heatmap import Extremes
from rl.analysis.pictures import draw_heatmaps
from rl.analysis.split import Split
from rl.analysis.study import Finding, Study
from rl.analysis.token_classes import CLASSES, LABELS

FORMAT_VERSION = 1


def check_out(out: Path) -> None:
    """Raises ValueError when `out` exists: an analysis never mixes its pictures with another's."""
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder with out=…")


def write_analysis(out: Path, studies: Mapping[str, Study], config: AnalysisConfig, name: str) -> None:
    """Write the folder. Raises ValueError when it exists."""
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        shared = draw_heatmaps(studies, config, partial / "heatmaps")
        splits = {prompt: study.split for prompt, study in studies.items()}
        (partial / "split.svg").write_text(split_chart(splits, f"Where the answer looks: {name}"), encoding="utf-8")
        content = analysis_json(studies, config, name, shared)
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        (partial / "analysis.json").write_text(text + "\n", encoding="utf-8")
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def analysis_json(
    studies: Mapping[str, Study], config: AnalysisConfig, name: str, shared: Extremes | None
) -> dict[str, Any]:
    """The content of analysis.json. A share a token of a class without tokens is null."""
    return {
        "format": FORMAT_VERSION,
        "name": name,
        "options": asdict(config),
        "classes": list(CLASSES),
        "heatmap_extremes": None if shared is None else asdict(shared),
        "prompts": {prompt: _study(study) for prompt, study in studies.items()},
    }


def _study(study: Study) -> dict[str, Any]:
    split, in_box = study.split, study.in_box
    layers = [
        {
            "layer": layer,
            "share": _by_class(split.shares_MC[layer].tolist()),
            "share_per_token": _by_class(split.per_token_MC[layer].tolist()),
            "attention_in_box": float(in_box.aib_M[layer]),
            "peak_in_box": float(in_box.pib_M[layer]),
        }
        for layer in range(study.layers)
    ]
    return {
        "samples": len(study.findings),
        "unanswered": dict(study.unanswered),
        "tokens": _by_class(split.tokens_C.tolist()),
        "mean": {**_shares(split), "attention_in_box": in_box.aib, "peak_in_box": in_box.pib, "uniform": in_box.uniform},
        "layers": layers,
        "per_sample": [_finding(finding) for finding in study.findings],
    }


def _shares(split: Split) -> dict[str, Any]:
    """Of the mean over layers."""
    return {
        "share": _by_class(split.shares_MC.mean(0).tolist()),
        "share_per_token": _by_class(split.per_token_MC.mean(0).tolist()),
    }


def _by_class(values: list[float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in zip(CLASSES, values, strict=True)}


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.sample.id,
        "answer": finding.record.text,
        "prediction": finding.record.prediction,
        "target": finding.record.target,
        "iou": finding.record.iou,
        "picks_target": finding.record.picks_target,
        "share": _by_class(finding.split.shares_MC.mean(0).tolist()),
        "attention_in_box": finding.in_box.aib,
        "peak_in_box": finding.in_box.pib,
    }


def console_table(studies: Mapping[str, Study], name: str) -> Table:
    """The split averaged over layers, one line a class, and Attention-in-Box under it."""
    table = Table(title=f"Attention of the answer's tokens, {name}")
    table.add_column("class")
    for prompt, study in studies.items():
        table.add_column(f"{TITLES[prompt]}\n{len(study.findings)} samples, share", justify="right")
        table.add_column("tokens", justify="right")
        table.add_column("share a token", justify="right")
    for place, label in enumerate(LABELS):
        cells: list[str] = []
        for study in studies.values():
            tokens = float(study.split.tokens_C[place])
            share = float(study.split.shares_MC[:, place].mean())
            cells += [f"{share:.3f}", f"{tokens:.1f}", f"{share / tokens:.5f}" if tokens else "–"]
        table.add_row(label, *cells)
    table.add_section()
    found = [study.in_box for study in studies.values()]
    rows = (
        ("attention in box", [in_box.aib for in_box in found]),
        ("peak in box", [in_box.pib for in_box in found]),
        ("box's share of cells", [in_box.uniform for in_box in found]),
    )
    for label, values in rows:
        table.add_row(label, *(cell for value in values for cell in (f"{value:.3f}", "", "")))
    return table

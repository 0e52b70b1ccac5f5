"""The papers' published localization figures, to stand beside ours: whose, on which dataset, at how many shots.

All are percentages as the papers print them, on the papers' own splits. FOCUS: arXiv 2605.31145; LOCUS: arXiv 2606.16586.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PaperResult:
    """One method on one dataset: mean IoU in percent by number of shots (None: a task without shots).

    `key` is the model it was measured with, `accuracy` the published ACC by IoU threshold.
    """

    key: str
    method: str
    dataset: str
    mean_iou: Mapping[int | None, float]
    accuracy: Mapping[float, float] = field(default_factory=dict)


def _shots(one: float, two: float, four: float) -> dict[int | None, float]:
    return {1: one, 2: two, 4: four}


PAPER_RESULTS = (
    PaperResult("qwen2_vl_7b", "Qwen2-VL-7B", "TAO", _shots(26.0, 31.6, 36.1)),
    PaperResult("qwen2_vl_7b", "IPLoc 7B", "TAO", _shots(51.7, 54.3, 56.1)),
    PaperResult("qwen2_vl_7b", "FOCUS 7B", "TAO", _shots(55.8, 63.0, 68.5)),
    PaperResult("qwen2_vl_7b", "Qwen2-VL-7B", "GOT", _shots(36.2, 37.0, 39.3)),
    PaperResult("qwen2_vl_7b", "IPLoc 7B", "GOT", _shots(64.2, 68.1, 68.7)),
    PaperResult("qwen2_vl_7b", "FOCUS 7B", "GOT", _shots(77.1, 80.6, 82.6)),
    PaperResult("qwen2_vl_7b", "Qwen2-VL-7B", "ICL-LaSOT", _shots(26.2, 22.3, 25.0)),
    PaperResult("qwen2_vl_7b", "IPLoc 7B", "ICL-LaSOT", _shots(49.7, 57.1, 59.4)),
    PaperResult("qwen2_vl_7b", "FOCUS 7B", "ICL-LaSOT", _shots(56.1, 59.9, 65.6)),
    PaperResult("qwen2_vl_7b", "Qwen2-VL-7B", "PerMIRS", {1: 24.5, 2: 50.2}),
    PaperResult("qwen2_vl_7b", "FOCUS 7B", "PerMIRS", {1: 53.8, 2: 72.8}),
    PaperResult("qwen2_vl_7b", "Qwen2-VL-7B", "PerSeg", _shots(64.0, 65.7, 63.4)),
    PaperResult("qwen2_vl_7b", "FOCUS 7B", "PerSeg", _shots(95.5, 96.6, 97.5)),
    PaperResult("qwen2_vl_72b", "Qwen2-VL-72B", "TAO", _shots(46.2, 52.8, 55.6)),
    PaperResult("qwen2_vl_72b", "FOCUS 72B", "ICL-LaSOT", {2: 70.72, 4: 72.35}),
    PaperResult("qwen2_vl_72b", "Qwen2-VL-72B", "GOT", _shots(62.7, 60.1, 59.9)),
    PaperResult("qwen2_vl_72b", "Qwen2-VL-72B", "ICL-LaSOT", _shots(51.9, 50.7, 55.4)),
    PaperResult("llava_onevision_7b", "LLaVA-OneVision", "TAO", _shots(22.5, 29.5, 33.5)),
    PaperResult("llava_onevision_7b", "FOCUS, LLaVA-OneVision", "TAO", _shots(52.2, 59.7, 65.7)),
    PaperResult("qwen2_5_vl_7b", "Qwen2.5-VL-7B", "LOCUS cues", {None: 16.4}, {0.5: 16.4, 0.75: 9.4}),
    PaperResult("qwen2_5_vl_7b", "LOCUS, Qwen2.5-VL-7B", "LOCUS cues", {None: 43.0}, {0.5: 48.8, 0.75: 25.0}),
    PaperResult("qwen3_vl_4b", "Qwen3-VL-4B", "LOCUS cues", {None: 21.7}, {0.5: 19.6, 0.75: 11.2}),
    PaperResult("qwen3_vl_4b", "LOCUS, Qwen3-VL-4B", "LOCUS cues", {None: 43.2}, {0.5: 48.4, 0.75: 31.0}),
)
PAPER_KEYS = tuple(dict.fromkeys(result.key for result in PAPER_RESULTS))

# What our datasets may be called, in small letters and digits alone.
_DATASETS = {
    "tao": "TAO",
    "got": "GOT",
    "got10k": "GOT",
    "lasot": "ICL-LaSOT",
    "icllasot": "ICL-LaSOT",
    "perseg": "PerSeg",
    "permirs": "PerMIRS",
    "locus": "LOCUS cues",
}
# Architecture and width of the language model, of the models that the papers measured.
_KEYS = {
    ("qwen2_vl", 3584): "qwen2_vl_7b",
    ("qwen2_vl", 8192): "qwen2_vl_72b",
    ("llava_onevision", 3584): "llava_onevision_7b",
    ("qwen2_5_vl", 3584): "qwen2_5_vl_7b",
    ("qwen3_vl", 2560): "qwen3_vl_4b",
}


def paper_key(model_type: str, hidden_size: int) -> str | None:
    """The key of the papers' model with this architecture, or None when they measured none."""
    return _KEYS.get((model_type, hidden_size))


def paper_results(key: str | None, dataset: str, shots: int | None) -> list[PaperResult]:
    """What the papers report for this model, dataset and number of shots; empty when nothing."""
    name = _DATASETS.get(re.sub("[^a-z0-9]", "", dataset.lower()))
    return [found for found in PAPER_RESULTS if found.key == key and found.dataset == name and shots in found.mean_iou]

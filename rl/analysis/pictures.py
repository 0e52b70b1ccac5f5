"""Draws the heat-maps of a study: one picture an image, of the layers' mean or of every layer.

heatmaps/<prompt>/00-<sample>.png                 layers' mean over the query image, truth and prediction
heatmaps/<prompt>/00-<sample>-image-0-layer-03.png      with images=all, each_layer=true
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data.sample import Sample, SupportBoxPart
from rl.analysis.config import AnalysisConfig
from rl.analysis.heatmap import EXTREMES, GIVEN, PREDICTION, TRUTH, Extremes, Outline, common, normalize, overlay, upsample
from rl.analysis.study import Finding, ImageAttention, Study


@dataclass(frozen=True)
class _Picture:
    path: Path
    finding: Finding
    seen: ImageAttention
    layers: tuple[int, ...]

    def heat(self) -> Tensor:
        """Upsampled to the image's pixels, not normalized."""
        image = self.finding.sample.images[self.seen.image]
        mean_N = self.seen.attention_MN[list(self.layers)].mean(0)
        return upsample(mean_N, self.seen.grid, image.width, image.height)


def draw_heatmaps(studies: Mapping[str, Study], config: AnalysisConfig, folder: Path) -> Extremes | None:
    """Write the pictures under `folder`; the extremes they share, if they do. Two passes: a map exists one at a time."""
    pictures = [picture for name, study in studies.items() for picture in _pictures(study, config, folder / name)]
    extremes = EXTREMES[config.normalize]
    shared: Extremes | None = None
    if config.peak is not None:
        shared = Extremes(0.0, config.peak)
    elif config.shared and pictures:
        shared = common([extremes(picture.heat()) for picture in pictures])
    for picture in pictures:
        heat = picture.heat()
        image = picture.finding.sample.images[picture.seen.image].open()
        picture.path.parent.mkdir(parents=True, exist_ok=True)
        drawn = overlay(image, normalize(heat, shared or extremes(heat)), _outlines(picture.finding, picture.seen.image))
        drawn.save(picture.path)
    return shared


def _pictures(study: Study, config: AnalysisConfig, folder: Path) -> Iterator[_Picture]:
    layers = tuple(config.layers or range(study.layers))
    groups = [((layer,), f"-layer-{layer:02d}") for layer in layers] if config.each_layer else [(layers, "")]
    for place, finding in enumerate(study.findings):
        name = f"{place:02d}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', finding.sample.id)[:80]}"
        for seen in finding.images:
            image = "" if config.images == "query" else f"-image-{seen.image}"
            for chosen, ending in groups:
                yield _Picture(folder / f"{name}{image}{ending}.png", finding, seen, chosen)


def _outlines(finding: Finding, image: int) -> Sequence[Outline]:
    """Truth and, where the answer is the model's own, prediction on the target's image; the given boxes on the others."""
    sample: Sample = finding.sample
    given = [Outline(p.box.corners, GIVEN) for p in sample.prompt if isinstance(p, SupportBoxPart) and p.index == image]
    if image != sample.target_image:
        return given
    answered = finding.record.prediction if finding.record.mode == "own" else None
    predicted = [Outline(answered, PREDICTION)] if answered is not None else []
    return [*given, Outline(sample.target.corners, TRUTH), *predicted]

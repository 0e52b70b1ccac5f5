"""The analysis of one prompt over many samples: answer, read the attention, split it, look for the box, keep what is drawn.

Of each sample a few vectors stay: shares, measures, and, for those that are drawn, the attention over their images' cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from data.sample import Sample
from rl.analysis.answers import ANSWERS, Reader, UnansweredError
from rl.analysis.grid import ImageGrid, merged_grid, overview_grid
from rl.analysis.in_box import InBox, attention_in_box
from rl.analysis.split import Split, mean_split, split_attention
from rl.analysis.stream import AnswerAttention
from rl.analysis.token_classes import NamedPrompt, token_classes
from rl.evaluation import judged_record
from rl.prompting import EncodedPrompt
from rl.runlog import ValidationRecord


@dataclass(frozen=True)
class ImageAttention:
    """The answer's attention over one image's cells: `attention_MN`, M layers, N cells in raster order."""

    image: int
    grid: ImageGrid
    attention_MN: Tensor


@dataclass(frozen=True)
class Finding:
    """What one sample gave. `record` is the answer whose attention was read, judged as an evaluation judges it."""

    sample: Sample
    record: ValidationRecord
    split: Split
    in_box: InBox
    images: tuple[ImageAttention, ...]


@dataclass(frozen=True)
class Study:
    """All samples under one prompt; `unanswered` are those whose answer has no attention, and why, by id."""

    findings: tuple[Finding, ...]
    unanswered: Mapping[str, str]

    @property
    def split(self) -> Split:
        return mean_split([finding.split for finding in self.findings])

    @property
    def layers(self) -> int:
        return len(self.findings[0].in_box.aib_M)

    @property
    def in_box(self) -> InBox:
        """Means over the samples."""
        found = [finding.in_box for finding in self.findings]
        return InBox(
            torch.stack([f.aib_M for f in found]).mean(0),
            torch.stack([f.pib_M for f in found]).mean(0),
            fmean(f.aib for f in found),
            fmean(f.pib for f in found),
            fmean(f.uniform for f in found),
        )


@dataclass(frozen=True)
class Asked:
    """How every sample is asked and read: `prompt` words it, `answer` names whose answer is read, `drawn` images stay."""

    prompt: Callable[[Sample], NamedPrompt]
    answer: str
    drawn: int
    all_images: bool


def study(reader: Reader, samples: Iterable[Sample], asked: Asked) -> Study:
    """One finding a sample, in order.

    Raises ValueError for a sample that cannot be asked this way, and when no sample is answered.
    """
    findings: list[Finding] = []
    unanswered: dict[str, str] = {}
    for sample in samples:
        try:
            findings.append(_find(reader, sample, asked, drawn=len(findings) < asked.drawn))
        except UnansweredError as error:
            unanswered[sample.id] = str(error)
    if not findings:
        reasons = "; ".join(sorted(set(unanswered.values()))[:3])
        raise ValueError(f"none of {len(unanswered)} samples was answered ({reasons}); answer=truth reads the true answers")
    return Study(tuple(findings), unanswered)


def _find(reader: Reader, sample: Sample, asked: Asked, drawn: bool) -> Finding:
    named = asked.prompt(sample)
    encoded = reader.encoder.encode(named.sample)
    answer = ANSWERS[asked.answer](reader, named.sample)
    attention = reader.attention(encoded, answer)
    class_L = token_classes(named, encoded, len(answer), reader.encoder.tokenizer)
    target = _image_grid(reader, named.sample, encoded, sample.target_image)
    over_target = _over_image(attention.first_ML, named.sample, encoded, sample.target_image, target)
    shown = range(len(sample.images)) if asked.all_images else (sample.target_image,)
    completion = reader.encoder.completion(sample, reader.encoder.decode(answer))
    return Finding(
        sample=sample,
        record=judged_record(sample, completion, asked.answer),
        split=split_attention(attention, class_L),
        in_box=attention_in_box(over_target, target.inside((sample.target,))),
        images=tuple(_image_attention(reader, named.sample, encoded, attention, image) for image in shown) if drawn else (),
    )


def _image_attention(
    reader: Reader, sample: Sample, encoded: EncodedPrompt, attention: AnswerAttention, image: int
) -> ImageAttention:
    grid = _image_grid(reader, sample, encoded, image)
    return ImageAttention(image, grid, _over_image(attention.mean_ML, sample, encoded, image, grid))


def _image_grid(reader: Reader, sample: Sample, encoded: EncodedPrompt, image: int) -> ImageGrid:
    if encoded.image_grid_thw is None:
        return overview_grid(sample.images[image], reader.rollouts.model.config.vision_config, alone=len(sample.images) == 1)
    return merged_grid(sample.images[image], encoded.image_grid_thw[image], reader.encoder.family.merge)


def _over_image(vectors_ML: Tensor, sample: Sample, encoded: EncodedPrompt, image: int, grid: ImageGrid) -> Tensor:
    """The vectors at the image's cells, [M, N]; tokens after the grid's (tiles, line ends) are left out."""
    tokens = encoded.image_mask(sample, image).nonzero()[:, 0]
    assert len(tokens) >= grid.cells, f"image {image} has {len(tokens)} tokens for {grid.cells} cells"
    return vectors_ML[:, tokens[: grid.cells]]

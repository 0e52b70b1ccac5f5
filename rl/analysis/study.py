"""The analysis of one prompt over many samples: answer, read the attention, split it, look for the box, keep what is drawn.

Of each sample a few vectors stay: shares, measures, and, for those that are drawn, the attention over their images' cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from data.box import Box
from data.sample import Sample
from rewards.iou import box_iou
from rewards.parse import AnswerError, parse_answer
from rewards.score import Completion
from rl.analysis.answers import ANSWERS, EmptyAnswerError, Reader
from rl.analysis.grid import ImageGrid, merged_grid, overview_grid
from rl.analysis.in_box import InBox, attention_in_box
from rl.analysis.split import Split, mean_split, split_attention
from rl.analysis.stream import AnswerAttention
from rl.analysis.token_classes import NamedPrompt, token_classes
from rl.prompting import EncodedPrompt


@dataclass(frozen=True)
class ImageAttention:
    """The answer's attention over one image's cells: `attention_MN`, M layers, N cells in raster order."""

    image: int
    grid: ImageGrid
    attention_MN: Tensor


@dataclass(frozen=True)
class Finding:
    """What one sample gave. `prediction` is in original pixels; None where the answer holds no valid box."""

    sample: Sample
    answer: str
    prediction: Box | None
    iou: float
    split: Split
    in_box: InBox
    images: tuple[ImageAttention, ...]


@dataclass(frozen=True)
class Study:
    """All samples under one prompt; `unanswered` are the ids of those whose answer is empty, which has no attention."""

    findings: tuple[Finding, ...]
    unanswered: tuple[str, ...]

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
    unanswered: list[str] = []
    for sample in samples:
        try:
            findings.append(_find(reader, sample, asked, drawn=len(findings) < asked.drawn))
        except EmptyAnswerError:
            unanswered.append(sample.id)
    if not findings:
        raise ValueError(f"all {len(unanswered)} answers are empty; answer=true reads the attention of the true ones")
    return Study(tuple(findings), tuple(unanswered))


def _find(reader: Reader, sample: Sample, asked: Asked, drawn: bool) -> Finding:
    named = asked.prompt(sample)
    encoded = reader.encoder.encode(named.sample)
    answer = ANSWERS[asked.answer](reader, named.sample)
    attention = reader.attention(named.sample, answer)
    class_L = token_classes(named, encoded, len(answer), reader.encoder.tokenizer)
    target = _image_grid(reader, named.sample, encoded, sample.target_image)
    over_target = _over_image(attention.first_ML, named.sample, encoded, sample.target_image, target)
    shown = range(len(sample.images)) if asked.all_images else (sample.target_image,)
    completion = reader.encoder.completion(sample, reader.encoder.decode(answer))
    return Finding(
        sample=sample,
        answer=completion.text,
        prediction=_prediction(sample, completion),
        iou=box_iou(sample, completion),
        split=split_attention(attention, class_L),
        in_box=attention_in_box(over_target, target.inside((sample.target,))),
        images=tuple(_image_attention(reader, named.sample, encoded, attention, image) for image in shown) if drawn else (),
    )


def _prediction(sample: Sample, completion: Completion) -> Box | None:
    try:
        return parse_answer(completion.text, completion.frame).to(sample.images[sample.target_image].frame)
    except AnswerError:
        return None


def _image_attention(
    reader: Reader, sample: Sample, encoded: EncodedPrompt, attention: AnswerAttention, image: int
) -> ImageAttention:
    grid = _image_grid(reader, sample, encoded, image)
    return ImageAttention(image, grid, _over_image(attention.mean_ML, sample, encoded, image, grid))


def _image_grid(reader: Reader, sample: Sample, encoded: EncodedPrompt, image: int) -> ImageGrid:
    if encoded.image_grid_thw is None:
        return overview_grid(sample.images[image], reader.model.config.vision_config, alone=len(sample.images) == 1)
    return merged_grid(sample.images[image], encoded.image_grid_thw[image], reader.encoder.family.merge)


def _over_image(vectors_ML: Tensor, sample: Sample, encoded: EncodedPrompt, image: int, grid: ImageGrid) -> Tensor:
    """The vectors at the image's cells, [M, N]; tokens after the grid's (tiles, line ends) are left out."""
    tokens = encoded.image_mask(sample, image).nonzero()[:, 0]
    assert len(tokens) >= grid.cells, f"image {image} has {len(tokens)} tokens for {grid.cells} cells"
    return vectors_ML[:, tokens[: grid.cells]]

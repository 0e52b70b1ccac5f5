"""How large a recipe's prompts and answers are, measured from its dataset where that is built, else from its limits.

Images are arithmetic on their sizes (data/families.py), no pixel is read. Text is counted by the model folder's tokenizer,
or, for a model that is not here, as a word, a digit or a sign a token. Answers have no length before they are sampled: the
recipe bounds them, and the task says what is usual.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from data.families import ModelFamily, PixelLimits, family_for
from data.prompts import FOCUS_PROMPT, LOCUS_PROMPT, chat_messages
from data.sample import Sample
from rl.config import ModelConfig, Recipe
from rl.plan.shapes import ModelShape

Source = Literal["measured", "recipe", "assumed"]
Size = tuple[int, int]  # width, height

SAMPLED, RUN = 128, 32  # rows of a dataset that are measured, and how many lie side by side
TEMPLATE_TOKENS = 24  # a chat template's own: system turn, roles
IMAGE_MARKS = 2  # around every image
TILE, TILE_PATCHES, MOST_TILES = 384, 729, 9  # LLaVA-OneVision: anyres_max_9 of 27 × 27 patches


@dataclass(frozen=True, slots=True)
class Workload:
    """Tokens of a prompt after image expansion (mean and largest), its images and their patches before merging, tokens of
    an answer. `sources` says of each field where its number is from, and how in a few words."""

    prompt_tokens: float
    prompt_tokens_max: int
    images: float
    patches: float
    patches_max: int
    answer_tokens: float
    answer_tokens_max: int
    sources: tuple[tuple[str, Source, str], ...]


@dataclass(frozen=True, slots=True)
class Task:
    """What a prompt of a task usually is, where its dataset is not built: image sizes, text, and tokens of an answer."""

    images: tuple[Size, ...]
    text: str
    answer_tokens: int
    told: str


# By the reward's name.
TASKS = {
    "locus": Task(((640, 480), (64, 64)), LOCUS_PROMPT, 250, "a COCO photo and a cue, a short thought"),
    "focus": Task(((1280, 720),) * 5, FOCUS_PROMPT + 4 * "[000, 000, 000, 000]", 28, "four shots of video, a box"),
}
OTHER = Task(((640, 480),), LOCUS_PROMPT, 250, "one photo, a short thought: the task is not known")


@dataclass(frozen=True, slots=True)
class _Prompt:
    tokens: int
    images: int
    patches: int


def workload_of(recipe: Recipe, shape: ModelShape) -> Workload:
    """Of the recipe's training prompts."""
    task = TASKS.get(recipe.reward.name, OTHER)
    counter = _PromptCounter(recipe.model, shape)
    samples = _samples(recipe.data.train)
    rollout = recipe.rollout
    bound = rollout.max_model_len - rollout.max_tokens  # the most that a run lets through, whatever a few rows show
    if samples:
        prompts = [counter.count(sample) for sample in samples]
        source = f"{len(prompts)} rows of {recipe.data.train}"
        sources: list[tuple[str, Source, str]] = [("prompt_tokens", "measured", source)]
    else:
        prompts = [counter.usual(task)]
        sources = [("prompt_tokens", "assumed", f"{task.told}; {recipe.data.train} is not built")]
    fullest = max(prompts, key=lambda each: each.patches)
    longest = max(bound, *(each.tokens for each in prompts))
    sources.append(("prompt_tokens_max", "recipe", "rollout.max_model_len − rollout.max_tokens"))
    usual = min(task.answer_tokens, rollout.max_tokens)
    capped = usual < task.answer_tokens
    sources.append(("answer_tokens", "recipe" if capped else "assumed", "rollout.max_tokens" if capped else task.told))
    return Workload(
        prompt_tokens=fmean(each.tokens for each in prompts),
        prompt_tokens_max=longest,
        images=fmean(each.images for each in prompts),
        patches=fmean(each.patches for each in prompts),
        patches_max=math.ceil(fullest.patches * longest / fullest.tokens),
        answer_tokens=usual,
        answer_tokens_max=rollout.max_tokens,
        sources=(*sources, ("answer_tokens_max", "recipe", "rollout.max_tokens")),
    )


def _samples(folder: str) -> list[Sample]:
    """Runs of rows from all over the training split, since row groups are read whole; none where it is not built."""
    if not any(Path(folder).glob("train-*.parquet")):
        return []
    from data.store import SampleStore

    store = SampleStore(folder)
    stride = max(RUN, len(store) // (SAMPLED // RUN))
    return [sample for start in range(0, len(store), stride) for sample in store[start : start + RUN]][:SAMPLED]


class _PromptCounter:
    """Tokens and patches of prompts for one model."""

    def __init__(self, model: ModelConfig, shape: ModelShape) -> None:
        self.family = family_for(shape.model_type)
        self.limits = _limits(model, self.family)
        self.text_tokens = _text_counter(Path(model.path))
        self.image: Callable[[Size, int], tuple[int, int]] = IMAGES[self.family.size_rule](self.family, self.limits)

    def count(self, sample: Sample) -> _Prompt:
        limits = self.limits if self.family.size_rule == "smart_resize" else None
        items = [item for message in chat_messages(sample, self.family, limits) for item in message["content"]]
        text = "".join(item["text"] for item in items if item["type"] == "text")
        return self._prompt([(image.width, image.height) for image in sample.images], text)

    def usual(self, task: Task) -> _Prompt:
        return self._prompt(task.images, task.text)

    def _prompt(self, sizes: Sequence[Size], text: str) -> _Prompt:
        images = [self.image(size, len(sizes)) for size in sizes]
        tokens = TEMPLATE_TOKENS + self.text_tokens(text) + sum(count + IMAGE_MARKS for count, _ in images)
        return _Prompt(tokens, len(sizes), sum(patches for _, patches in images))


def _resized(family: ModelFamily, limits: PixelLimits) -> Callable[[Size, int], tuple[int, int]]:
    """Tokens and patches of an image that is resized as a whole."""

    def image(size: Size, of: int) -> tuple[int, int]:
        width, height = family.resized_size(*size, limits.min_pixels, limits.max_pixels)
        tokens = width * height // family.unit**2
        return tokens, tokens * family.merge**2

    return image


def _tiled(family: ModelFamily, limits: PixelLimits) -> Callable[[Size, int], tuple[int, int]]:
    """An image alone is an overview and up to nine tiles of detail; several are overviews."""

    def image(size: Size, of: int) -> tuple[int, int]:
        tiles = min(MOST_TILES, math.ceil(size[0] / TILE) * math.ceil(size[1] / TILE)) if of == 1 else 0
        return (1 + tiles) * TILE_PATCHES + 1, (1 + tiles) * TILE_PATCHES

    return image


IMAGES: dict[str, Callable[[ModelFamily, PixelLimits], Callable[[Size, int], tuple[int, int]]]] = {
    "smart_resize": _resized,
    "tiles": _tiled,
}


def _limits(model: ModelConfig, family: ModelFamily) -> PixelLimits:
    """The run's pixel limits, the folder's processor's where it has one, else those of the published processors."""
    size = _processor_size(Path(model.path))
    least = model.min_pixels or size.get("shortest_edge", family.limits.min_pixels)
    most = model.max_pixels or size.get("longest_edge", family.limits.max_pixels)
    return PixelLimits(least, max(least, most))


def _processor_size(folder: Path) -> dict[str, int]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content: dict[str, Any] = json.loads((folder / name).read_text())
            size: dict[str, int] = content.get("image_processor", content).get("size") or {}
            return size
    return {}


def _text_counter(folder: Path) -> Callable[[str], int]:
    if not (folder / "tokenizer.json").is_file():
        return lambda text: len(re.findall(r"\d|[^\W\d]+|[^\w\s]", text))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

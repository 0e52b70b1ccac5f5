"""How large a recipe's prompts and answers are, measured from its dataset where that is built, else from its limits.

Lengths count what one prompt and one answer are; a step's numbers follow from the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rl.config import Recipe
from rl.plan.shapes import ModelShape

Source = Literal["measured", "recipe", "assumed"]


@dataclass(frozen=True, slots=True)
class Workload:
    """Tokens of a prompt after image expansion (mean and largest), its images and their patches before merging (mean), of
    an answer (mean and largest). `sources` says of each field where its number is from, and how in a few words."""

    prompt_tokens: float
    prompt_tokens_max: int
    images: float
    patches: float
    patches_max: int
    answer_tokens: float
    answer_tokens_max: int
    sources: tuple[tuple[str, Source, str], ...]


def workload_of(recipe: Recipe, shape: ModelShape) -> Workload:
    """Of the recipe's last stage's prompts."""
    raise NotImplementedError

"""Workloads: lengths of prompts against the processor's own, and what is assumed where no dataset is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.sample import Sample
from data.store import samples_to_table
from data.store_writer import DatasetWriter
from rl.config import load_recipe
from rl.plan.shapes import shape_of
from rl.plan.workload import Workload, workload_of
from rl.prompting import PromptEncoder


def workload(name: str, *overrides: str) -> Workload:
    recipe = load_recipe(f"recipes/{name}.yaml", overrides)
    return workload_of(recipe, shape_of(recipe.model))


def test_a_built_dataset_is_measured_as_the_processor_measures_it(tmp_path: Path, tiny_samples: list[Sample]) -> None:
    folder = tmp_path / "set"
    with DatasetWriter(folder) as writer:
        writer.write("train", samples_to_table(tiny_samples))
    found = workload("locus/tiny", f"data.train={folder}")
    encoder = PromptEncoder("recipes/locus/tiny_model")
    lengths = [encoder.prompt_length(sample) for sample in tiny_samples]
    patches = [len(encoder.encode(sample).vision["pixel_values"]) for sample in tiny_samples]
    assert found.prompt_tokens == pytest.approx(sum(lengths) / len(lengths), abs=24)
    assert (found.images, found.patches) == (2, sum(patches) / len(patches))
    assert ("prompt_tokens", "measured", f"{len(lengths)} rows of {folder}") in found.sources


def test_the_longest_prompt_is_what_the_recipe_lets_through_not_what_a_few_rows_show(
    tmp_path: Path, tiny_samples: list[Sample]
) -> None:
    folder = tmp_path / "set"
    with DatasetWriter(folder) as writer:
        writer.write("train", samples_to_table(tiny_samples))
    found = workload("locus/tiny", f"data.train={folder}", "rollout.max_model_len=4096", "rollout.max_tokens=96")
    assert found.prompt_tokens_max == 4000
    assert found.patches_max > found.patches * 4000 / (found.prompt_tokens + 100)
    assert ("prompt_tokens_max", "recipe", "rollout.max_model_len − rollout.max_tokens") in found.sources


def test_without_a_dataset_limits_and_the_task_speak() -> None:
    """COCO's 640 × 480 is 391 tokens and a cue 361 at least 262,144 pixels: 23 × 17 and 19 × 19 units of 28."""
    found = workload("locus/qwen2_5_vl_7b", "data.train=nowhere")
    assert found.patches == 4 * (391 + 361)
    assert found.prompt_tokens - (391 + 361) == pytest.approx(170, abs=40)
    assert (found.prompt_tokens_max, found.answer_tokens_max) == (2048, 2048)
    assert {source for _, source, _ in found.sources} == {"assumed", "recipe"}


def test_answers_are_never_longer_than_the_recipe_lets_them() -> None:
    found = workload("locus/qwen2_5_vl_7b", "data.train=nowhere", "rollout.max_tokens=100")
    assert (found.answer_tokens, found.answer_tokens_max) == (100, 100)
    assert ("answer_tokens", "recipe", "rollout.max_tokens") in found.sources


def test_llava_takes_an_overview_of_each_of_several_images() -> None:
    found = workload("focus/llava_onevision_7b", "data.train=nowhere")
    assert found.patches == 5 * 729
    assert found.prompt_tokens > 5 * 730


def test_an_unknown_task_is_told_to_be_one() -> None:
    recipe = load_recipe("recipes/locus/qwen2_5_vl_7b.yaml", ["data.train=nowhere"])
    recipe.reward = replace(recipe.reward, name="mine")
    found = workload_of(recipe, shape_of(recipe.model))
    assert found.images == 1
    assert "the task is not known" in found.sources[0][2]

"""The committed warm start: small, whole, and already able to localize, with room left for GRPO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from data.config import LocusConfig, SizeBin
from data.locus import build_locus
from data.store import SampleStore
from data.synthetic import write_coco
from data.tiny_sets import CUES_HELD_OUT
from rewards.config import RewardConfig
from rl.config import load_recipe
from rl.demo import RECIPES
from rl.evaluation import Evaluation, evaluate
from rl.records import Sampling
from tests.rl.local_roles import LocalRewards, LocalRollouts
from tests.rl.sampler_case import running_sampler, sampler_config

SCENES = 48


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluation]:
    """Greedy answers on scenes that neither the warm start nor the demo has seen: held-out photographs, another seed."""
    root = tmp_path_factory.mktemp("scenes")
    annotations = write_coco(root / "coco", SCENES, seed=99, split="val", spec=CUES_HELD_OUT)
    bins = {"any": SizeBin(0.0, 1.0)}
    config = LocusConfig(0, SCENES, bins=bins, mix={"any": 1.0}, augmented_bins=())
    build_locus(annotations, root / "coco" / "val", root / "locus", config)
    samples = SampleStore(root / "locus", split="validation")[:]
    recipe = load_recipe(RECIPES / "tiny.yaml")
    settings = sampler_config(Path(recipe.model.path), max_model_len=256, max_num_seqs=64)
    settings = replace(settings, min_pixels=recipe.model.min_pixels, max_pixels=recipe.model.max_pixels)
    with running_sampler(settings) as sampler, LocalRewards(RewardConfig(name="locus")) as rewards:
        greedy = Sampling(1, 0.0, 1.0, recipe.rollout.max_tokens, seed=0)
        yield evaluate(LocalRollouts(sampler), rewards, samples, sampler.encoder.completion, greedy, "greedy")


def test_it_is_under_two_million_parameters() -> None:
    model = AutoModelForImageTextToText.from_pretrained(RECIPES / "tiny_model")
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000


def test_it_writes_the_asked_form_and_localizes_clearly_above_chance(evaluation: Evaluation) -> None:
    """The best constant box has a mean IoU of 0.08; an answer at random picks the target in 0.4 of these scenes."""
    assert evaluation.metrics["samples"] == SCENES
    assert evaluation.metrics["format_rate"] > 0.9
    assert evaluation.metrics["mean_iou"] > 0.25


def test_it_leaves_headroom(evaluation: Evaluation) -> None:
    assert evaluation.metrics["mean_iou"] < 0.7

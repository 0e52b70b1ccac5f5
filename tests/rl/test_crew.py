"""What the crew decides before anything starts."""

from __future__ import annotations

import pytest

from rl.actors.rollout import RolloutGroup
from rl.actors.rollout_stream import StreamingRolloutGroup
from rl.config import load_recipe
from rl.crew import asks_for_gpus, sampler_group, samples_at_once


@pytest.mark.parametrize(
    ("named", "local", "there", "asked"),
    [
        (True, False, False, True),  # the nodes with the GPUs are still joining
        (False, False, False, False),  # a cluster of CPU nodes
        (True, True, False, False),  # a recipe for GPUs on this machine, which has none: no node will join
        (False, False, True, True),
        (False, True, True, True),
    ],
)
def test_gpus_are_asked_for_where_they_are_or_will_be(named: bool, local: bool, there: bool, asked: bool) -> None:
    recipe = load_recipe("recipes/locus/tiny.yaml", ["plan.gpu=A100-80G"] if named else [])
    assert asks_for_gpus(recipe, local, there) is asked


def test_samplers_stream_only_for_grpo() -> None:
    assert sampler_group(load_recipe("recipes/locus/tiny.yaml", [])) is StreamingRolloutGroup
    sft = ["stages=[sft]", "sft.steps=1", "cluster.placement=colocated", "learner.ranks=1", "rollout.actors=1"]
    assert sampler_group(load_recipe("recipes/locus/tiny.yaml", sft)) is RolloutGroup


def test_as_many_samples_are_kept_in_the_object_store_as_two_steps_ask_for() -> None:
    def kept(*overrides: str) -> int:
        return samples_at_once(load_recipe("recipes/locus/tiny.yaml", overrides))

    assert kept() == 2 * 16
    assert kept("grpo.max_staleness=2", "algorithm.rollout_is=token") == 2 * 3 * 16
    assert kept("algorithm.dynamic_sampling=true", "algorithm.max_sampling_rounds=3") == 2 * 3 * 16
    assert kept("stages=[sft,grpo]", "sft.steps=1", "sft.batch_size=64") == 2 * 64

"""The backend `vllm` of rl.evaluate: the recipe's rollout actors on Ray, as training starts them, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.placement import place
from cluster.preflight import preflight
from cluster.session import ray_session
from rl.actors.rollout import RolloutGroup, sampler_config
from rl.actors.samples import SampleShipper
from rl.config import ModelConfig, Recipe
from rl.crew import role_specs


@contextmanager
def open_vllm(recipe: Recipe, model: ModelConfig, max_images: int) -> Iterator[RolloutGroup]:
    """Rollout actors that have loaded `model`, for prompts of at most `max_images` images."""
    cluster = recipe.cluster
    with ray_session(cluster) as session:
        gpus = ray.cluster_resources().get("GPU", 0) > 0
        specs = [spec for spec in role_specs(recipe, gpus) if spec.name == "rollout"]
        placement = session.own(place(specs, timeout_s=cluster.placement_timeout_s, may_grow=not session.local))
        engine = sampler_config(model, recipe.rollout, recipe.seed, max_images)
        shipper = SampleShipper(keep=0)  # no sample is asked twice
        rollouts = session.own(
            RolloutGroup(placement["rollout"], engine, "gpu" if gpus else "cpu", shipper, cluster.start_timeout_s)
        )
        preflight([rollouts.group])
        rollouts.ready()
        yield rollouts

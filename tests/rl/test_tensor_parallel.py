"""A tensor-parallel sampler in a Ray actor: its ranks are that actor's processes, see its GPUs, and sample as one does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster.config import ClusterConfig
from cluster.placement import RoleSpec, place
from cluster.session import ray_session
from rl.actors.rollout import RolloutActor, RolloutGroup
from rl.actors.samples import SampleShipper
from rl.records import Rollout, Sampling
from rl.sampler_config import SamplerConfig
from rl.tiny_backbone import write
from rl.tiny_backbone_language import TinyShape
from tests.rl.learner_case import case_samples


def seen_by_workers(actor: RolloutActor) -> list[tuple[int, str]]:
    """The parent process of each of vLLM's workers, and the GPUs that the worker sees."""
    found: list[tuple[int, str]] = actor.sampler._engine.collective_rpc(seen_here)
    assert all(parent == os.getpid() for parent, _ in found)
    return found


def seen_here(_worker: object) -> tuple[int, str]:
    return os.getppid(), os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.slow
def test_its_ranks_are_processes_of_the_actor_and_sample_alike(tmp_path: Path) -> None:
    write(tmp_path, seed=0, shape=TinyShape(hidden_size=128, heads=4, kv_heads=2))
    config = SamplerConfig(
        model=str(tmp_path),
        dtype="float32",
        max_model_len=256,
        max_images=2,
        kv_cache_bytes=32 << 20,
        max_num_seqs=16,
        enforce_eager=True,
    )
    samples, greedy = case_samples(3), Sampling(1, 0.0, 1.0, 8)
    answers: dict[int, list[list[tuple[int, ...]]]] = {}
    with ray_session(ClusterConfig(address="local", local_cpus=8, local_object_store_mb=80)) as session:
        placement = session.own(place([RoleSpec("rollout", 1, tensor_parallel=2)], timeout_s=60))
        slots = [replace(slot, env={"CUDA_VISIBLE_DEVICES": "6,7"}) for slot in placement["rollout"]]
        for ranks in (1, 2):
            wanted = replace(config, tensor_parallel_size=ranks)
            group = RolloutGroup(slots, wanted, "cpu", SampleShipper(), timeout_s=300)
            group.ready()
            groups = group.generate(samples, greedy)
            answers[ranks] = [[one.tokens for one in found if isinstance(one, Rollout)] for found in groups]
            if ranks == 2:
                (actor,) = group.group.actors
                assert [seen for _, seen in ray.get(actor.__ray_call__.remote(seen_by_workers))] == ["6,7", "6,7"]
            group.shutdown()
    assert all(len(tokens) for found in answers[1] for tokens in found)
    assert answers[2] == answers[1]

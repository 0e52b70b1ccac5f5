"""GRPO with its real parts in one process: vLLM samples, rewards verify, the learner updates, vLLM takes the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.sample import Sample
from data.stream import PromptStream
from rewards.config import RewardConfig
from rl.config import AlgorithmConfig, GrpoConfig, LearnerConfig, ModelConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.learner import Learner
from rl.loop import GrpoLoop, Roles, StepReport, hand_over
from rl.records import Sampling
from tests.rl.sampler_case import running_sampler, sampler_config

from rl.sampler import VllmSampler  # isort: skip  (sampler_case sets vLLM's environment)
from tests.rl.local_roles import LocalLearner, LocalRewards, LocalRollouts  # isort: skip

ALGORITHMS = {
    "grpo": AlgorithmConfig(kl_coefficient=0.01),
    "dr_grpo": AlgorithmConfig(normalize_by_std=False, loss_aggregation="seq-mean-token-sum-norm", loss_scale=16),
    "rloo": AlgorithmConfig(advantage="rloo"),
    "dapo": AlgorithmConfig(clip_high=0.28, dynamic_sampling=True, max_sampling_rounds=2),
    "gspo": AlgorithmConfig(loss="gspo", loss_aggregation="seq-mean-token-mean", clip_low=3e-4, clip_high=4e-4),
    "off_policy": AlgorithmConfig(old_logprobs="rollout", rollout_is="sequence", kl_coefficient=0.01, kl_estimator="k1"),
}


@pytest.fixture(scope="module")
def sampler(tiny_model_dir: Path) -> Iterator[VllmSampler]:
    with running_sampler(sampler_config(tiny_model_dir)) as built:
        yield built


def lettered(sample: Sample, completion) -> float:  # type: ignore[no-untyped-def]
    """A random model never writes a box, so its letters are what is judged here."""
    return sum(map(ord, completion.text)) % 97 / 97


def run_steps(
    model_dir: Path, samples: list[Sample], sampler: VllmSampler, algorithm: AlgorithmConfig, steps: int
) -> list[StepReport]:
    encoder = sampler.encoder
    model, config = ModelConfig(path=str(model_dir)), LearnerConfig(dtype="float32", tokens_per_micro_batch=600)
    learner = Learner(model, config, OptimizerConfig(lr=1e-3), encoder, Rendezvous(), temperature=1.0)
    trained = LocalLearner(learner, algorithm)
    rollouts = LocalRollouts(sampler)
    with LocalRewards(RewardConfig(name="tests.rl.test_grpo_real:lettered")) as rewards:
        loop = GrpoLoop(
            Roles(rollouts, rewards, trained, trained if algorithm.kl_coefficient else None),
            PromptStream(samples, seed=0),
            encoder.completion,
            GrpoConfig(steps=steps, prompts_per_step=4, prompts_per_update=2, num_generations=3),
            algorithm,
            Sampling(3, 1.0, 1.0, 8, seed=1),
            mismatch_bound=1e-4,
        )
        hand_over(trained, rollouts, 0)
        reports = [loop.step(step) for step in range(steps)]
    learner.close()
    return reports


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_runs_and_learns_something(
    name: str, tiny_model_dir: Path, tiny_samples: list[Sample], sampler: VllmSampler
) -> None:
    reports = run_steps(tiny_model_dir, tiny_samples, sampler, ALGORITHMS[name], steps=2)
    assert sampler.version == 2
    for report in reports:
        assert report.metrics["grad_norm"] > 0
        assert report.metrics["reward/total"] > 0
        assert report.metrics["rollout/failures"] == report.metrics["reward/failures"] == 0


def test_sampler_and_learner_agree_at_every_step(
    tiny_model_dir: Path, tiny_samples: list[Sample], sampler: VllmSampler
) -> None:
    for report in run_steps(tiny_model_dir, tiny_samples[:2], sampler, AlgorithmConfig(), steps=3):
        assert 0.0 < report.metrics["mismatch/max"] <= 1e-4

"""The sampler on the other families: one exported by a learner, answering as Hugging Face does, then given new weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from data.sample import Sample
from rl.export import export_policy
from rl.records import Sampling
from rl.tiny_backbone import write
from rl.weights import checksum
from tests.rl.families_case import family_samples
from tests.rl.learner_case import build_learner, case_batch, run_updates
from tests.rl.sampler_case import (
    adapted,
    config_of,
    largest_mismatch,
    matrices,
    perturbed,
    rollouts_of,
    running_sampler,
    sampler_config,
)
from tests.rl.stock_forward import forward_inputs

from rl.sampler import VllmSampler  # isort: skip  (sampler_case sets vLLM's environment)

SAMPLING = Sampling(n=2, temperature=1.0, top_p=1.0, max_tokens=8, seed=3)
GREEDY = Sampling(n=1, temperature=0.0, top_p=1.0, max_tokens=8, seed=3)
BOUND = 1e-4
# A weight of the vision tower, as the published checkpoints call it.
VISION_WEIGHT = {
    "qwen2_vl": "visual.patch_embed.proj.weight",
    "llava_onevision": "vision_tower.vision_model.embeddings.patch_embedding.weight",
}
VISION_PARTS = {"qwen2_vl": ("visual",), "llava_onevision": ("vision_tower", "image_newline")}


@pytest.fixture(scope="module", params=list(VISION_PARTS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a learner exported after two updates of a tiny model."""
    out: Path = tmp_path_factory.mktemp(request.param)
    write(out / "start", seed=0, architecture=request.param)
    learner = build_learner(out / "start")
    run_updates(learner, case_batch(learner.encoder), world=1, rank=0)
    export_policy(learner, out / "export")
    torch.save({name: tensor.clone() for name, tensor in learner.full_weights()}, out / "learner.pt")
    learner.close()
    return out / "export"


@pytest.fixture(scope="module")
def exported(folder: Path) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[VllmSampler]:
    own_limits = {"min_pixels": None, "max_pixels": None}
    config = sampler_config(folder, max_images=5, max_model_len=512, max_lora_rank=8, **own_limits)
    with running_sampler(config) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return family_samples()


def test_an_export_holds_the_learners_weights_under_published_names(folder: Path, exported: nn.Module) -> None:
    learned = torch.load(folder.parent / "learner.pt")
    loaded = exported.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in learned.items())
    start, export = (load_file(path / "model.safetensors") for path in (folder.parent / "start", folder))
    assert export.keys() == start.keys()
    name = VISION_WEIGHT[exported.config.model_type]
    assert not torch.equal(export[name], start[name])


def test_greedy_answers_are_those_of_generate(sampler: VllmSampler, exported: nn.Module, samples: list[Sample]) -> None:
    """Prompts of one, two and five images together; the sampler itself compares vLLM's prompt ids with the processor's."""
    groups = sampler.generate(samples, GREEDY)
    for sample, rollout in zip(samples, rollouts_of(groups), strict=True):
        inputs = forward_inputs(sampler.encoder.encode(sample))
        assert rollout.prompt_tokens == inputs["input_ids"].shape[1]
        whole = exported.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=GREEDY.max_tokens,
            suppress_tokens=list(sampler.encoder.banned_token_ids),
        )
        assert tuple(whole[0, rollout.prompt_tokens :].tolist()) == rollout.tokens


def test_logprobs_equal_a_hugging_face_forward_alone_and_together(
    sampler: VllmSampler, exported: nn.Module, samples: list[Sample]
) -> None:
    """An image in one prompt alone and in another among several is not the same features, whichever came first."""
    for batch in (samples, samples[:1], samples[1:], samples[::-1]):
        assert largest_mismatch(exported, sampler.encoder, batch, sampler.generate(batch, SAMPLING)) <= BOUND


def test_new_weights_under_transformers_names_are_sampled_from(
    sampler: VllmSampler, exported: nn.Module, samples: list[Sample]
) -> None:
    """All of them, and each part of the vision side alone, whose features no cache may keep."""
    for version, part in enumerate(("", *VISION_PARTS[exported.config.model_type]), start=1):
        model = perturbed(exported, part)
        sampler.generate(samples, SAMPLING)
        receipt = sampler.load_weights(model.state_dict().items(), version)
        assert receipt.checksum == checksum(model.state_dict().items())
        groups = sampler.generate(samples, SAMPLING)
        assert largest_mismatch(model, sampler.encoder, samples, groups) <= BOUND
        assert largest_mismatch(exported, sampler.encoder, samples, groups[-1:]) > 10 * BOUND
        sampler.load_weights(exported.state_dict().items(), version)


def test_an_adapter_equals_peft(sampler: VllmSampler, exported: nn.Module, folder: Path, samples: list[Sample]) -> None:
    model = adapted(folder, seed=5)
    sampler.load_weights(exported.state_dict().items(), version=10)
    sampler.load_adapter(matrices(model).items(), config_of(model), version=11)
    groups = sampler.generate(samples, SAMPLING)
    assert largest_mismatch(model, sampler.encoder, samples, groups) <= BOUND
    assert largest_mismatch(exported, sampler.encoder, samples, groups[-1:]) > 10 * BOUND
    sampler.load_weights(exported.state_dict().items(), version=12)

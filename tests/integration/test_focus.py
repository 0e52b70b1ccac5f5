"""FOCUS's two stages in one run on real Ray, vLLM and learners, for the families whose processors differ most."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.focus import build_focus
from data.focus_config import FocusConfig, Source
from data.generators.tao import write_tao
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec
from rl.tiny_backbone import write
from tests.integration.runs import run, write_recipe

STAGES = (
    "stages=[sft,grpo]",
    "sft.steps=1",
    "sft.batch_size=4",
    "sft.teacher=focus",
    "sft.attention_loss.weight=0.25",
    "grpo.steps=1",
    "rollout.max_model_len=1024",
    "learner.tokens_per_micro_batch=4096",
)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 2-shot episodes of videos in TAO's layout for training, four for validation."""
    root = tmp_path_factory.mktemp("focus")
    spec = VideoSpec(frames=6, scene=SceneSpec(width=84, height=84, area=(0.08, 0.2)))
    write_tao(root / "tao", 12, seed=0, spec=spec)
    config = FocusConfig(shots=(2,), image_storage="bytes", validation_fraction=0.34)
    build_focus([Source("tao", "train", root / "tao")], root / "episodes", config)
    return root / "episodes"


@pytest.mark.parametrize(
    ("architecture", "lora"), [pytest.param("llava_onevision", 4, marks=pytest.mark.slow), ("qwen2_vl", 0)]
)
def test_sft_with_the_attention_loss_then_grpo(tmp_path: Path, episodes: Path, architecture: str, lora: int) -> None:
    """One step of each. GRPO's reference is SFT's policy, so its KL is nought; samplers and learner agree."""
    write(tmp_path / "model", seed=0, architecture=architecture)
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path / "model", episodes, tmp_path / "runs")
    done = run(recipe, *STAGES, f"model.lora.rank={lora}", "sft.optimizer.lr=1e-3")
    assert done.status == 0, done.err
    by_stage = {line["stage"]: line["metrics"] for line in done.metrics() if line["step"] == 1}
    assert by_stage["sft"]["loss/attention"] > 0
    assert 0 < by_stage["sft"]["attention/box_mass"] < 1
    assert by_stage["grpo"]["loss/kl"] == pytest.approx(0.0, abs=1e-6)
    assert by_stage["grpo"]["mismatch/max"] <= 1e-4

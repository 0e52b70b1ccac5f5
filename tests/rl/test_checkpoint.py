"""Where a run begins: `start_from` and `resume` take what fits, and say what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.group import ActorError
from rl.checkpoint import CheckpointError, save_checkpoint, saved_policy
from rl.config import ConfigError, LoraConfig, ModelConfig, Recipe, load_recipe, to_yaml
from rl.run import open_run_dir
from tests.rl.test_loop import RecordingLearner

LORA = ("model.lora.rank=4", "model.lora.alpha=8")


def recipe(*overrides: str) -> Recipe:
    return load_recipe("recipes/locus/tiny.yaml", overrides)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A LoRA run with two checkpoints, as far as what is read of one before it starts."""
    run = tmp_path / "runs" / "20260101-000000"
    for step in (5, 10):
        (run / "checkpoints" / f"grpo-{step}" / "learner").mkdir(parents=True)
        state = {"stage": "grpo", "step": step}
        (run / "checkpoints" / f"grpo-{step}" / "state.json").write_text(json.dumps(state))
    (run / "config.yaml").write_text(to_yaml(recipe(*LORA, "start_from=runs/earlier")))
    return run


def model(alpha: int = 8, rank: int = 4) -> ModelConfig:
    return ModelConfig(path="recipes/locus/tiny_model", lora=LoraConfig(rank=rank, alpha=alpha))


def test_a_run_gives_its_newest_checkpoint_and_a_checkpoint_itself(run_dir: Path) -> None:
    assert saved_policy(run_dir, model()) == run_dir / "checkpoints" / "grpo-10" / "learner"
    older = run_dir / "checkpoints" / "grpo-5"
    assert saved_policy(older, model()) == older / "learner"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (model(alpha=16), r"model.lora.alpha=8, this recipe has 16"),  # twice the update, and nothing would show it
        (model(rank=8), r"model.lora.rank=4, this recipe has 8"),
        (ModelConfig(path="elsewhere", lora=LoraConfig(rank=4, alpha=8)), r"model.path=recipes/locus/tiny_model"),
    ],
)
def test_another_policy_is_refused_with_the_remedy(run_dir: Path, other: ModelConfig, told: str) -> None:
    with pytest.raises(CheckpointError, match=f"{told}.*export, as model.path"):
        saved_policy(run_dir, other)


@pytest.mark.parametrize("place", ["export", "checkpoints/grpo-7", "checkpoints"])
def test_what_is_no_checkpoint_is_refused(run_dir: Path, place: str) -> None:
    (run_dir / place).mkdir(exist_ok=True)
    with pytest.raises(CheckpointError):
        saved_policy(run_dir / place, model())


def test_resuming_from_another_start_is_refused(run_dir: Path) -> None:
    """The reference would be another policy."""
    resumed = recipe(*LORA, f"resume={run_dir}", "start_from=runs/earlier")
    assert open_run_dir(resumed) == run_dir
    with pytest.raises(ConfigError, match="give start_from=runs/earlier as well"):
        open_run_dir(recipe(*LORA, f"resume={run_dir}"))
    with pytest.raises(ConfigError, match="`stages`"):
        open_run_dir(recipe(*LORA, f"resume={run_dir}", "start_from=runs/earlier", "stages=[sft]", "sft.steps=1"))


def test_a_start_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"exported model goes into model\.path"):
        open_run_dir(recipe(f"runs={tmp_path / 'new'}", f"start_from={tmp_path}"))
    assert not (tmp_path / "new").exists()


class FailingLearner(RecordingLearner):
    """Writes a part of its shards, then fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def save(self, directory: Path) -> None:
        (directory / "part").write_text("some")
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ActorError("learner", 0, "save", "OSError: [Errno 28] No space left on device\nTraceback …"),
        ActorError("learner", 0, "save", "RuntimeError: [enforce fail at inline_container.cc] PytorchStreamWriter failed"),
    ],
)
def test_a_disk_that_does_not_take_a_checkpoint_is_said_with_the_remedy(run_dir: Path, error: Exception) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)MiB are free there.*make room.*resume="):
        save_checkpoint(run_dir, "grpo", 15, FailingLearner(error), {}, keep=2)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["grpo-10", "grpo-5"]


@pytest.mark.parametrize(
    "detail", ["OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nTraceback …", "its process died"]
)
def test_another_failure_while_saving_is_not_taken_for_a_full_disk(run_dir: Path, detail: str) -> None:
    error = ActorError("learner", 0, "onload", detail)
    with pytest.raises(ActorError) as raised:
        save_checkpoint(run_dir, "grpo", 15, FailingLearner(error), {}, keep=2)
    assert raised.value is error
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["grpo-10", "grpo-5"]

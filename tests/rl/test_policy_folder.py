"""What `checkpoint=` may name: an export, a run, a checkpoint of a run, nothing; and what is said of anything else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from rl.config import Recipe, load_recipe, to_yaml
from rl.policy_folder import PolicyFolder, PolicyFolderError, policy_folder
from tests.rl.learner_case import build_learner, case_batch, run_updates

RECIPE = """
name: tiny
stages: [sft]
model: {{path: {model}, lora: {{rank: {rank}, alpha: {alpha}}}}}
data: {{train: none, validation: none}}
learner: {{dtype: float32, activation_checkpointing: false}}
sft: {{steps: 1}}
"""


def recipe_of(folder: Path, model: Path, rank: int) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=model, rank=rank, alpha=2 * rank))
    return load_recipe(path)


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_dir: Path) -> Recipe:
    return recipe_of(tmp_path, tiny_model_dir, rank=0)


def write_checkpoint(run: Path, model: Path, rank: int) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run's checkpoint after one update, and the policy's weights then."""
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(recipe_of(run, model, rank)))
    checkpoint = run / "checkpoints" / "sft-1"
    (checkpoint / "learner").mkdir(parents=True)
    learner = build_learner(model, lora_rank=rank)
    try:
        run_updates(learner, case_batch(learner.encoder), world=1, rank=0, steps=1)
        learner.save(checkpoint / "learner")
        weights = {name: tensor.clone() for name, tensor in learner.full_weights()}
    finally:
        learner.close()
    (checkpoint / "state.json").write_text(json.dumps({"stage": "sft", "step": 1}))
    return checkpoint, weights


def test_nothing_is_the_recipes_model(recipe: Recipe, tiny_model_dir: Path) -> None:
    assert policy_folder(None, recipe) == PolicyFolder(str(tiny_model_dir), "base model")


def test_an_export_and_the_run_that_holds_it(recipe: Recipe, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert policy_folder(str(tiny_model_dir), recipe) == PolicyFolder(str(tiny_model_dir), "export")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: tiny")
    (tmp_path / "run" / "export").symlink_to(tiny_model_dir)
    found = policy_folder(str(tmp_path / "run"), recipe)
    assert found == PolicyFolder(str(tmp_path / "run" / "export"), "run")


def test_a_run_that_went_on_after_its_export_is_not_taken_for_the_export(
    recipe: Recipe, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Stopped in GRPO, a run still holds SFT's export."""
    run = tmp_path / "run"
    (run / "checkpoints" / "grpo-60").mkdir(parents=True)
    (run / "config.yaml").write_text("name: tiny\nstages: [sft, grpo]")
    shutil.copytree(tiny_model_dir, run / "export")
    (run / "export" / "stage.json").write_text(json.dumps({"stage": "sft", "step": 500}))
    state = run / "checkpoints" / "grpo-60" / "state.json"
    state.write_text(json.dumps({"stage": "grpo", "step": 60}))
    with pytest.raises(PolicyFolderError, match=r"step 500 of sft, and went on to step 60 of grpo: give checkpoint="):
        policy_folder(str(run), recipe)
    (run / "export" / "stage.json").write_text(json.dumps({"stage": "grpo", "step": 60}))
    assert policy_folder(str(run), recipe).kind == "run"


@pytest.mark.parametrize("rank", [0, 2])
def test_a_checkpoint_is_written_out_once(rank: int, recipe: Recipe, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The run's own recipe says what the shards are of, LoRA merged in; the evaluation's (without LoRA) does not."""
    checkpoint, weights = write_checkpoint(tmp_path / "run", tiny_model_dir, rank)
    found = policy_folder(str(checkpoint), recipe)
    assert found == PolicyFolder(str(checkpoint / "export"), "checkpoint")
    loaded = AutoModelForImageTextToText.from_pretrained(found.path).state_dict()
    base = AutoModelForImageTextToText.from_pretrained(tiny_model_dir).state_dict()
    changed = [name for name, weight in weights.items() if not torch.equal(weight, base[name])]
    assert changed and all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    written = (checkpoint / "export" / "model.safetensors").stat().st_mtime_ns
    assert policy_folder(str(checkpoint), recipe) == found
    assert (checkpoint / "export" / "model.safetensors").stat().st_mtime_ns == written


def test_what_is_no_model_is_told_apart(recipe: Recipe, tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(PolicyFolderError) as raised:
            policy_folder(str(tmp_path / name), recipe)
        return str(raised.value)

    assert "no such folder; for a model of the hub use model.path=" in refused("nowhere")
    (tmp_path / "odd").mkdir()
    assert "the folder holds nothing" in refused("odd")
    (tmp_path / "odd" / "adapter_model.safetensors").touch()
    message = refused("odd")
    assert "looked for config.json" in message and "the folder holds adapter_model.safetensors" in message
    (tmp_path / "odd" / "config.json").touch()
    (tmp_path / "odd" / "adapter_model.safetensors").unlink()
    assert "no weights" in refused("odd")


def test_a_run_that_has_not_exported_yet_names_its_checkpoints(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "grpo-75").mkdir(parents=True)
    (run / "config.yaml").touch()
    with pytest.raises(PolicyFolderError, match="has no checkpoint either"):
        policy_folder(str(run), recipe)
    (run / "checkpoints" / "grpo-75" / "state.json").touch()
    with pytest.raises(PolicyFolderError, match=r"give one of its checkpoints: .*grpo-75"):
        policy_folder(str(run), recipe)

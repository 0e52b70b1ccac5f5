"""A recipe that cannot run is refused with its key and the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rl.config import ConfigError, load_recipe, to_yaml

MINIMAL = """
name: example
model: {path: some/model}
data: {train: a, validation: b}
grpo: {steps: 10, prompts_per_step: 8, prompts_per_update: 4}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_win_over_the_recipe_and_the_recipe_over_its_parent(tmp_path: Path, recipe_file: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: recipe.yaml\nseed: 3\ngrpo: {steps: 20}\n")
    recipe = load_recipe(child, ["grpo.prompts_per_update=2"])
    assert (recipe.seed, recipe.grpo.steps, recipe.grpo.prompts_per_step, recipe.grpo.prompts_per_update) == (3, 20, 8, 2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grpo.step=5", ["grpo.step", "grpo.steps"]),
        ("rolout.actors=2", ["rolout", "rollout"]),
        ("grpo.steps=many", ["grpo.steps", "many"]),
        ("learner.layout=shred", ["learner.layout", "shared"]),
        ("grpo.num_generations=1", ["grpo.num_generations", "advantage"]),
        ("grpo.prompts_per_update=3", ["prompts_per_update", "prompts_per_step"]),
        ("grpo.max_staleness=-1", ["grpo.max_staleness"]),
        ("grpo.max_staleness=1", ["grpo.max_staleness", "algorithm.rollout_is"]),
        ("grpo.drop_stale=true", ["grpo.drop_stale", "grpo.max_staleness"]),
        ("rollout.temperature=0", ["rollout.temperature"]),
        ("rollout.top_p=0.9", ["rollout.top_p"]),
        ("rollout.max_tokens=9000", ["rollout.max_tokens", "rollout.max_model_len"]),
        ("reward.timeout_s=0", ["reward.timeout_s"]),
        ("algorithm.advantage=gro", ["algorithm.advantage", "grpo"]),
        ("algorithm.kl_estimator=k9", ["algorithm.kl_estimator", "k3"]),
        ("algorithm.loss=vanila", ["algorithm.loss", "vanilla"]),
        ("learner.ranks=0", ["learner.ranks"]),
        ("stages=[gropo]", ["stages", "grpo"]),
        ("seed", ["key=value"]),
        ("profile=x", ["profile.steps", "3-5"]),
        ("profile=0-2", ["profile.steps", "from 1"]),
        ("profile=5-3", ["profile.steps", "upwards"]),
        ("profile=11", ["profile.steps", "10 steps"]),
        ("profile.torch=true", ["profile.torch", "profile.steps"]),
        ("profile.step=3", ["profile.step", "profile.steps"]),
    ],
)
def test_what_cannot_run_is_refused_by_name(recipe_file: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_recipe(recipe_file, [override])
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["algorithm.rollout_is=token", "cluster.placement=colocated"], "disaggregated"),
        (["algorithm.old_logprobs=rollout", "algorithm.loss=gpg"], "algorithm.loss=gpg"),
    ],
)
def test_what_cannot_be_learnt_while_it_is_sampled_is_refused(recipe_file: Path, overrides: list[str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load_recipe(recipe_file, ["grpo.max_staleness=1", *overrides])
    assert load_recipe(recipe_file, ["grpo.max_staleness=1", "algorithm.old_logprobs=rollout"]).grpo.max_staleness == 1


def test_an_open_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "open.yaml"
    path.write_text(MINIMAL.replace("path: some/model", "freeze_vision: true"))
    with pytest.raises(ConfigError, match=r"model\.path"):
        load_recipe(path)


def test_a_circle_of_parents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_recipe(tmp_path / "a.yaml")


def test_the_resolved_recipe_loads_to_the_same_recipe(tmp_path: Path, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["seed=4", "reward.kwargs.alpha=0.2"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(recipe))
    assert load_recipe(saved) == recipe


def test_dropout_is_refused_where_logprobs_are_compared(recipe_file: Path) -> None:
    dropping = ["model.lora.rank=4", "model.lora.dropout=0.1"]
    with pytest.raises(ConfigError, match=r"`model\.lora\.dropout` is 0\.1.*model\.lora\.dropout=0`"):
        load_recipe(recipe_file, dropping)
    assert load_recipe(recipe_file, [*dropping, "stages=[sft]", "sft.steps=1"]).model.lora.dropout == 0.1


def test_a_config_error_answers_without_torch_ray_or_vllm(recipe_file: Path) -> None:
    program = (
        "import sys; from rl.train import main; status = main(sys.argv[1:]); "
        "print(sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(recipe_file), "grpo.step=5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean `grpo.steps`" in done.stderr
    assert done.stdout.strip() == "[]"


def test_profile_alone_means_its_steps_on_the_command_line_and_in_a_recipe(tmp_path: Path, recipe_file: Path) -> None:
    assert load_recipe(recipe_file).profile.wanted() == frozenset()
    assert load_recipe(recipe_file, ["profile=3-5,8"]).profile.wanted() == {3, 4, 5, 8}
    assert load_recipe(recipe_file, ["profile.steps=2", "profile.torch=true"]).profile.wanted() == {2}
    child = tmp_path / "child.yaml"
    child.write_text("extends: recipe.yaml\nprofile: 7\n")
    assert load_recipe(child).profile.wanted() == {7}
    assert load_recipe(child, ["profile=null"]).profile.wanted() == frozenset()
    child.write_text(to_yaml(load_recipe(child)))
    assert load_recipe(child).profile.wanted() == {7}

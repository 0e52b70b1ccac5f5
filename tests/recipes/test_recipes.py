"""Every recipe that ships loads, the paper's run holds the paper's values, and the commands printed beside it parse."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data.build import make_parser
from data.config import LocusConfig
from data.locus_command import build
from rewards.registry import resolve
from rl.config import Recipe, load_recipe, to_container

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
LOCUS = RECIPES / "locus"
PAPER_RUN = LOCUS / "qwen2_5_vl_7b.yaml"
ABLATIONS = sorted((LOCUS / "ablations").glob("*.yaml"))

# arXiv 2606.16586, Table 8 (training) and section B.1; the prose of 4.1 for the backbone.
FROM_THE_PAPER = {
    "stages": ["grpo"],
    "model.path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "model.lora.rank": 0,
    "reward.name": "locus",
    "algorithm.advantage": "grpo",
    "algorithm.normalize_by_std": True,
    "algorithm.kl_coefficient": 1e-2,
    "grpo.optimizer.lr": 1e-6,
    "grpo.optimizer.weight_decay": 1e-2,
    "grpo.optimizer.max_grad_norm": 1.0,
    "grpo.optimizer.warmup_ratio": 0.05,
    "grpo.prompts_per_update": 128,
    "grpo.num_generations": 8,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "validation.sampled": True,
    "validation.temperature": 0.6,
    "validation.top_p": 0.95,
    "validation.samples": None,
}

# EasyR1's examples/config.yaml and its actor's clip ratios, where the paper is silent.
FROM_EASYR1 = {
    "algorithm.kl_estimator": "low_var_kl",
    "algorithm.clip_low": 0.2,
    "algorithm.clip_high": 0.3,
    "algorithm.dual_clip": 3.0,
    "algorithm.loss_aggregation": "token-mean",
    "grpo.prompts_per_step": 512,
    "grpo.optimizer.schedule": "constant",
    "rollout.max_tokens": 2048,
    "rollout.max_model_len": 2048 + 2048,
    "model.min_pixels": 262_144,
    "model.max_pixels": 4_194_304,
    "model.freeze_vision": False,
}


def recipe_files() -> list[Path]:
    """All but the sweeps, which are no recipes."""
    return sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "sweeps")


def flat(recipe: Recipe) -> dict[str, Any]:
    """A recipe's leaves by dotted key."""

    def leaves(node: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return found

    return leaves(to_container(recipe), "")


def differences(one: Recipe, other: Recipe) -> dict[str, Any]:
    """Keys in which `one` differs from `other`, with the values of `one`."""
    mine, theirs = flat(one), flat(other)
    return {key: mine.get(key) for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python -m data.build …` in a text, continuation lines joined, comment marks dropped."""
    joined = re.sub(r"\\\n(?:#\s*)?", " ", text)
    return [shlex.split(found)[3:] for found in re.findall(r"python -m data\.build locus[^\n`]*", joined)]


def locus_config(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[argparse.Namespace, LocusConfig]:
    """What a printed command would build, through the real parser and command, without building."""
    seen: list[LocusConfig] = []
    monkeypatch.setattr("data.locus_command.build_locus", lambda *positional: seen.append(positional[3]))
    parsed = make_parser().parse_args(arguments)
    build(parsed, lambda split, kept, wanted: None)
    return parsed, seen[0]


@pytest.fixture
def in_a_folder_with_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands read the excluded image ids when they are parsed."""
    (tmp_path / "refcoco_images.txt").write_text("9\n25\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", recipe_files(), ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert set(recipe.stages) <= {"sft", "grpo"}


def test_recipes_have_names_of_their_own() -> None:
    names = [load_recipe(path).name for path in recipe_files()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("key", "value"), (FROM_THE_PAPER | FROM_EASYR1).items())
def test_the_7b_run_is_the_papers(key: str, value: Any) -> None:
    assert flat(load_recipe(PAPER_RUN))[key] == value


def test_the_7b_run_weighs_the_format_as_the_paper_does() -> None:
    """α = 0.1 (Table 8), by the recipe's kwargs or by the reward's own default."""
    reward = load_recipe(PAPER_RUN).reward
    bound = inspect.signature(resolve(reward.name, reward.kwargs)).bind(None, None, **reward.kwargs)
    bound.apply_defaults()
    assert bound.arguments["alpha"] == 0.1


def test_the_7b_run_marks_where_each_value_comes_from() -> None:
    """Every line with a value carries [P], [F] or [N]; only the run's name needs no source."""
    unmarked = [
        line
        for line in PAPER_RUN.read_text().splitlines()
        if re.match(r"\s*\w+: *[^#\s]", line) and not re.search(r"\[[PFN]\]", line)
    ]
    assert unmarked == ["name: locus-qwen2_5_vl_7b"]


def test_one_epoch_of_the_papers_data_is_the_7b_runs_steps() -> None:
    recipe, data = load_recipe(PAPER_RUN), LocusConfig()
    assert (data.train_samples, data.validation_samples) == (99_500, 500)
    assert recipe.grpo.steps == data.train_samples // recipe.grpo.prompts_per_step


def test_the_7b_run_fills_a_node_of_eight_gpus() -> None:
    recipe = load_recipe(PAPER_RUN)
    rollout = recipe.rollout.actors * recipe.rollout.tensor_parallel
    assert rollout + recipe.learner.ranks + recipe.reference.ranks == 8
    assert recipe.grpo.prompts_per_update % recipe.learner.ranks == 0


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mimo_vl_7b.yaml", {"name", "model.path"}),
        ("qwen3_vl_4b_thinking.yaml", {"name", "model.path"}),
    ],
)
def test_other_backbones_differ_in_the_model_alone(name: str, keys: set[str]) -> None:
    assert differences(load_recipe(LOCUS / name), load_recipe(PAPER_RUN)).keys() == keys


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_differs_in_its_dataset_alone(path: Path) -> None:
    recipe = load_recipe(path)
    assert differences(recipe, load_recipe(PAPER_RUN)).keys() == {"name", "data.train", "data.validation"}
    assert recipe.data.train == recipe.data.validation


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("large_cues", {"mix": {"large": 1.0}}),
        ("tiny_60", {"mix": {"tiny": 0.6, "small": 0.4}}),
        ("tiny_80", {"mix": {"tiny": 0.8, "small": 0.2}}),
        ("tiny_90", {"mix": {"tiny": 0.9, "small": 0.1}}),
        ("tiny_100", {"mix": {"tiny": 1.0}}),
        ("random_crops", {"source": "random_crop"}),
    ],
)
@pytest.mark.usefixtures("in_a_folder_with_ids")
def test_an_ablations_head_makes_the_dataset_it_trains_on(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = LOCUS / "ablations" / f"{name}.yaml"
    (arguments,) = commands(path.read_text())
    parsed, config = locus_config(arguments, monkeypatch)
    assert str(parsed.out) == load_recipe(path).data.train
    expected = asdict(LocusConfig()) | {"excluded_images": frozenset({9, 25})} | changes
    assert asdict(config) == expected


@pytest.mark.usefixtures("in_a_folder_with_ids")
def test_the_papers_dataset_is_all_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    (arguments,) = commands(PAPER_RUN.read_text())
    parsed, config = locus_config(arguments, monkeypatch)
    assert str(parsed.out) == load_recipe(PAPER_RUN).data.train
    assert asdict(config) == asdict(LocusConfig()) | {"excluded_images": frozenset({9, 25})}


@pytest.mark.usefixtures("in_a_folder_with_ids")
def test_the_readme_prints_the_commands_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = commands((LOCUS / "README.md").read_text())
    heads = [commands(path.read_text())[0] for path in (PAPER_RUN, *ABLATIONS)]
    assert sorted(printed) == sorted(heads)
    for arguments in printed:
        locus_config(arguments, monkeypatch)

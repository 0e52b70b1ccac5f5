"""FOCUS's recipes hold the paper's values, its ablations change one thing each, and the printed commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data import focus_command
from data.build import make_parser
from data.focus_config import FocusConfig
from rl.config import load_recipe
from rl.evaluation_options import parse_options
from rl.sweep import cells, load_sweep
from tests.recipes.test_recipes import RECIPES, differences, flat

FOCUS = RECIPES / "focus"
PAPER_RUN = FOCUS / "qwen2_vl_7b.yaml"
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]

# arXiv 2605.31145: the appendix's tables, sections 5 and 7.1, Table 6 for μ and β.
FROM_THE_PAPER = {
    "stages": ["sft", "grpo"],
    "model.path": "Qwen/Qwen2-VL-7B-Instruct",
    "model.quantization": "nf4",
    "model.lora.rank": 8,
    "model.lora.alpha": 16,
    "model.lora.dropout": 0.0,
    "model.lora.targets": LORA_TARGETS,
    "reward.name": "focus",
    "sft.batch_size": 16,
    "sft.attention_loss.weight": 0.25,
    "sft.attention_loss.margin": 0.025,
    "sft.attention_loss.layers": "all",
    "sft.attention_loss.reduction": "mean",
    "sft.optimizer.lr": 2e-4,
    "sft.optimizer.warmup_ratio": 0.03,
    "sft.optimizer.max_grad_norm": 0.3,
    "grpo.num_generations": 4,
    "grpo.optimizer.lr": 1e-5,
    "grpo.optimizer.warmup_ratio": 0.01,
    "grpo.optimizer.max_grad_norm": 1.0,
    "algorithm.advantage": "grpo",
    "algorithm.normalize_by_std": True,
    "learner.dtype": "bfloat16",
    "rollout.max_model_len": 8192 + 128,
}


@pytest.mark.parametrize(("key", "value"), FROM_THE_PAPER.items())
def test_the_7b_run_is_the_papers(key: str, value: Any) -> None:
    assert flat(load_recipe(PAPER_RUN))[key] == value


def test_the_7b_run_marks_where_each_value_comes_from() -> None:
    unmarked = [
        line
        for line in PAPER_RUN.read_text().splitlines()
        if re.match(r"\s*\w+: *[^#\s]", line) and not re.search(r"\[[PFN]\]", line)
    ]
    assert unmarked == ["name: focus-qwen2_vl_7b"]


@pytest.mark.parametrize(
    ("name", "base", "changed"),
    [
        ("sft", "../qwen2_vl_7b", {"stages": ["sft"], "sft.attention_loss.weight": 0.0}),
        ("grpo", "../qwen2_vl_7b", {"stages": ["grpo"]}),
        ("grpo_sft", "../qwen2_vl_7b", {"stages": ["grpo", "sft"], "sft.attention_loss.weight": 0.0}),
        ("sft_attention", "../qwen2_vl_7b", {"stages": ["sft"]}),
        ("layers_first5", "sft_attention", {"sft.attention_loss.layers": "first5"}),
        ("layers_last5", "sft_attention", {"sft.attention_loss.layers": "last5"}),
        ("../llava_onevision_7b", "../qwen2_vl_7b", {"model.max_pixels": None}),
    ],
)
def test_an_ablation_changes_what_its_name_says(name: str, base: str, changed: dict[str, Any]) -> None:
    found = differences(*(load_recipe(FOCUS / "ablations" / f"{each}.yaml") for each in (name, base)))
    assert {key: value for key, value in found.items() if key not in ("name", "model.path")} == changed


@pytest.mark.parametrize("path", sorted(FOCUS.glob("*_7*b*.yaml")), ids=lambda path: path.stem)
def test_every_gpu_of_the_named_nodes_is_used(path: Path) -> None:
    recipe = load_recipe(path)
    reference = recipe.reference.ranks if recipe.reference.placement == "actor" else 0
    used = recipe.rollout.actors * recipe.rollout.tensor_parallel + recipe.learner.ranks + reference
    assert used == recipe.plan.nodes * recipe.plan.gpus_per_node


def test_the_sweep_is_the_papers_grid() -> None:
    """Three margins, eight weights; a margin without a weight is one run: 3 · 7 + 1."""
    path = FOCUS / "sweeps" / "margin_weight.yaml"
    sweep = load_sweep(path)
    runs = cells(sweep)
    assert len(runs) == 22
    for cell in (runs[0], runs[-1]):
        keys = [f"{sweep.rows.key}={cell.row}", f"{sweep.columns.key}={cell.column}"]
        loss = load_recipe(path.parent / sweep.recipe, keys).sft.attention_loss
        assert (loss.margin, loss.weight) == (cell.row, cell.column)
    assert sweep.paper is not None and sweep.paper[0][sweep.columns.values.index(0.25)] == 57.1


def commands(text: str, module: str) -> list[list[str]]:
    """The arguments of every `python -m MODULE …` that stands in a code block of its own."""
    return [shlex.split(found)[3:] for found in re.findall(rf"^ *(python -m {module} [^\n]*)", text, re.MULTILINE)]


def test_the_printed_build_commands_parse_and_lead_to_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (FOCUS / "README.md").read_text()
    (tmp_path / "lasot_train_categories.txt").write_text("airplane\nbear\n")
    monkeypatch.chdir(tmp_path)
    seen: dict[str, FocusConfig] = {}

    def record(sources: object, out: Path, config: FocusConfig, *rest: object) -> SimpleNamespace:
        seen[str(out)] = config
        return SimpleNamespace(damage=(), damaged_tracks=0, unusable=(), unmatched_exclusions=())

    monkeypatch.setattr(focus_command, "build_focus", record)
    printed = commands(readme, r"data\.build")
    for arguments in printed:
        focus_command.build(make_parser().parse_args(arguments), lambda stage, done, total: None)
    assert len(seen) == len(printed) == 9
    trained = {load_recipe(path).data.train for path in FOCUS.glob("q*.yaml")}
    assert trained <= seen.keys()
    for folder in trained:
        assert (seen[folder].shots, seen[folder].validation_fraction) == ((4,), 0.1)
    (evaluation,) = commands(readme, r"rl\.evaluate")
    options, overrides = parse_options(evaluation[1:])
    assert (options.shots, overrides) == ((1, 2, 4), [])
    assert set(options.datasets.values()) <= seen.keys()

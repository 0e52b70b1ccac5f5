"""`python -m rl.analyze`: from a recipe, a model and a dataset folder to figures and pictures; what it refuses, and how."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from data.sample import Sample
from data.store_writer import write_samples
from rl.analysis.config import AnalysisConfig, parse_options
from rl.analyze import main
from rl.config import ConfigError
from tests.rl.analysis_case import focus_samples

RECIPE = """
name: case
stages: [grpo]
model: {path: MODEL}
data: {train: DATA, validation: DATA}
rollout: {dtype: float32, max_tokens: 12, max_model_len: 512}
grpo: {steps: 1}
"""


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return focus_samples(2)


@pytest.fixture(scope="module")
def recipe(samples: list[Sample], tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_samples(folder / "data", {"train": samples, "validation": samples})
    path = folder / "case.yaml"
    path.write_text(RECIPE.replace("MODEL", str(tiny_model_dir)).replace("DATA", str(folder / "data")))
    return path


def analyze(recipe: Path, model: Path, out: Path, *more: str) -> int:
    return main([str(recipe), f"checkpoint={model}", f"out={out}", *more])


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "analysis.json").read_text())
    return content


def test_end_to_end_with_both_prompts(
    recipe: Path, tiny_model_dir: Path, tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "analysis"
    assert analyze(recipe, tiny_model_dir, out, "category=both", "answer=truth", "samples=null") == 0
    content = read(out)
    assert list(content["prompts"]) == ["out", "in"]
    for name, prompt in content["prompts"].items():
        assert prompt["samples"] == 2 and len(prompt["layers"]) == 3
        for shares in (prompt["mean"]["share"], *(layer["share"] for layer in prompt["layers"])):
            assert math.isclose(sum(shares.values()), 1.0, abs_tol=1e-5)
        assert prompt["tokens"]["category_tokens"] == (3 if name == "in" else 0)
        assert (prompt["mean"]["share"]["category_tokens"] > 0) == (name == "in")
        assert (prompt["mean"]["share_per_token"]["category_tokens"] is None) == (name == "out")
        assert 0 < prompt["mean"]["attention_in_box"] < 1
        # The true answer is read back as the target: the box is right to within its rounding.
        assert all(found["iou"] > 0.9 for found in prompt["per_sample"])
        pictures = sorted(path.name for path in (out / "heatmaps" / name).iterdir())
        assert pictures == ["00-video_0.png", "01-video_1.png"]
    with Image.open(out / "heatmaps" / "out" / "00-video_0.png") as drawn:
        assert drawn.size == (112, 84)
        assert not np.array_equal(np.asarray(drawn), np.asarray(samples[0].images[2].open()))
    bars = ElementTree.parse(out / "split.svg").getroot()
    assert bars.tag == "{http://www.w3.org/2000/svg}svg"
    printed = capsys.readouterr().out
    assert "category tokens" in printed and "attention in box" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["analysis"]


def test_own_answers_every_layer_and_image_at_a_shared_peak(recipe: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "own"
    options = ("samples=1", "heatmaps=1", "layers=[0,2]", "each_layer=true", "images=all", "shared=true")
    assert analyze(recipe, tiny_model_dir, out, *options) == 0
    names = sorted(path.name for path in (out / "heatmaps" / "out").iterdir())
    assert names == [f"00-video_0-image-{image}-layer-0{layer}.png" for image in range(3) for layer in (0, 2)]
    content = read(out)
    assert content["options"]["answer"] == "own" and content["options"]["layers"] == [0, 2]
    assert content["heatmap_extremes"]["low"] == 0 < content["heatmap_extremes"]["high"] < 1
    assert content["prompts"]["out"]["per_sample"][0]["answer"]


def test_a_given_peak_is_taken_and_no_picture_is_no_folder(recipe: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert analyze(recipe, tiny_model_dir, tmp_path / "a", "samples=1", "answer=truth", "peak=0.02") == 0
    assert read(tmp_path / "a")["heatmap_extremes"] == {"low": 0.0, "high": 0.02}
    assert analyze(recipe, tiny_model_dir, tmp_path / "b", "samples=1", "answer=truth", "heatmaps=0") == 0
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["analysis.json", "split.svg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["smaples=3"], "no option `smaples=3`; did you mean `samples`"),
        (["checkpoint"], "an override is key=value, got `checkpoint`"),
        (["samples=0"], "`samples` is 0"),
        (["samples=many"], "`samples`"),
        (["answer=mine"], "`answer` is `mine`; one of own, truth"),
        (["layers=[]"], "`layers` is empty"),
        (["peak=-1"], "`peak` is -1.0"),
        (["peak=1", "normalize=minmax"], "only with normalize=peak"),
        (["grpo.stepz=3"], "did you mean `grpo.steps`"),
    ],
)
def test_options_that_cannot_run_stop_at_once(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert analyze(recipe, tmp_path, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_names_the_options_and_no_recipe_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "category=out|in|both" in capsys.readouterr().out
    assert main([]) == 2


def test_without_options_it_is_the_recipes_model_in_a_folder_of_its_runs(recipe: Path, tmp_path: Path) -> None:
    assert main([str(recipe), f"runs={tmp_path}", "samples=1", "heatmaps=0"]) == 0
    (found,) = (tmp_path / "case" / "analyze").iterdir()
    assert read(found)["options"]["checkpoint"] is None


def test_failures_have_a_message_and_leave_nothing(
    recipe: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    for out, options, message in (
        (taken, [], "exists already"),
        (tmp_path / "out", ["checkpoint=elsewhere"], "checkpoint=elsewhere: there is no such folder"),
        (tmp_path / "out", ["layers=[3]"], "`layers` names layer 3; the model has layers 0 to 2"),
        (tmp_path / "out", [f"data.validation={tmp_path / 'nowhere'}"], "nowhere"),
    ):
        assert analyze(recipe, tiny_model_dir, out, *options) == 1
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_options_and_overrides_are_told_apart() -> None:
    config, overrides = parse_options(["out=a", "model.max_pixels=9", "checkpoint=b", "seed=3", "layers=[1,2]"])
    assert config == AnalysisConfig(checkpoint="b", out="a", layers=[1, 2])
    assert overrides == ["model.max_pixels=9", "seed=3"]
    with pytest.raises(ConfigError, match="no option `outt=a`"):
        parse_options(["outt=a"])

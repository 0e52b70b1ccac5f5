"""In a submitted job, paths into Ray's copy of the checkout are refused, with the key and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.config import ConfigError, load_recipe

TINY = Path(__file__).resolve().parents[2] / "recipes/locus/tiny.yaml"
ABSOLUTE = ("runs=/shared/runs", "data.train=/shared/train", "data.validation=/shared/held_out")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside of Ray's copy of a checkout, as the driver of a submitted job."""
    copy = tmp_path / "_ray_pkg_0123456789abcdef"
    copy.mkdir()
    monkeypatch.chdir(copy)
    config = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    return copy


def test_absolute_paths_are_taken(copy: Path) -> None:
    assert load_recipe(TINY, ABSOLUTE).runs == "/shared/runs"


@pytest.mark.parametrize(
    "override", ["runs=runs", "data.train=mine", "resume=runs/x", "start_from=runs/x", "runs=../_ray_pkg_0123456789abcdef/x"]
)
def test_a_relative_one_is_refused(override: str, copy: Path) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError, match=rf"`{key}={value}` would lie in Ray's copy.*{key}=/shared/"):
        load_recipe(TINY, [*ABSOLUTE, override])


def test_what_came_with_the_upload_is_on_every_node(copy: Path) -> None:
    (copy / "mine").mkdir()
    assert load_recipe(TINY, [*ABSOLUTE, "data.train=mine"]).data.train == "mine"


def test_outside_a_job_relative_paths_are_taken(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert load_recipe(TINY).runs == "runs"

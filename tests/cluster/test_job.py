"""A program under `ray job submit` knows Ray's copy of its checkout, and the variables it was submitted with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.job import job_environment, uploaded_folder


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts this process into a job, as Ray's job supervisor does."""

    def submitted(**runtime_env: Any) -> None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env, "metadata": {}}))

    return submitted


def test_outside_a_job_there_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert uploaded_folder() is None and job_environment() == {}


def test_the_copy_is_found_from_inside_it_only(submit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    (copy / "recipes").mkdir(parents=True)
    submit(working_dir="gcs://_ray_pkg_0123456789abcdef.zip")
    for inside in (copy, copy / "recipes"):
        monkeypatch.chdir(inside)
        assert uploaded_folder() == copy
    monkeypatch.chdir(tmp_path)
    assert uploaded_folder() is None


@pytest.mark.parametrize("working_dir", [None, "local:///opt/sightline"])
def test_a_job_whose_code_is_on_the_node_has_no_copy(
    working_dir: str | None, submit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    submit(working_dir=working_dir)
    assert uploaded_folder() is None


def test_the_variables_of_a_job(submit: Any) -> None:
    submit(env_vars={"HF_HOME": "/shared/huggingface"})
    assert job_environment() == {"HF_HOME": "/shared/huggingface"}
    submit(env_vars=None)
    assert job_environment() == {}

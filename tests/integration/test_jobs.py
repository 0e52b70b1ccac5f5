"""`ray job submit` on clusters of several raylets: start, logs, stop, exit status, resume, what a killed driver leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private import ray_constants
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

from tests.integration.cluster_of_nodes import ROOT, Nodes, comes_true, started
from tests.integration.runs import write_recipe

SMALL = ("algorithm.kl_coefficient=0", "rollout.actors=1", "learner.ranks=1", "checkpoint.every=1")
PATIENT = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}'


def train(recipe: Path, *overrides: str) -> list[str]:
    return ["python", "-m", "rl.train", str(recipe), *overrides]


def lines(runs: Path) -> list[dict[str, Any]]:
    """What the only run under `runs` has logged."""
    return [json.loads(line) for log in runs.glob("tiny/*/metrics.jsonl") for line in log.read_text().splitlines()]


def runs_now(actors: Sequence[dict[str, Any]]) -> list[psutil.Process]:
    """The actors' processes and everything that these started."""
    found = []
    for actor in actors:
        process = psutil.Process(actor["pid"])
        found += [process, *process.children(recursive=True)]
    return found


def are_gone(processes: Sequence[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two raylets: the four CPUs of a run's actors are on no one of them."""
    with started(3, 2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def run_recipe(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, data_dir: Path) -> Path:
    root = tmp_path_factory.mktemp("job")
    return write_recipe(root / "recipe.yaml", model_dir, data_dir, root / "runs")


@pytest.fixture(scope="module")
def stopped(nodes: Nodes, run_recipe: Path) -> tuple[JobStatus, str, list[dict[str, Any]], list[psutil.Process]]:
    """A run of 400 steps that `ray job stop` ended after two: status, logs, its actors, and the processes it had."""
    runs = run_recipe.parent / "runs"
    options = ("--runtime-env-json", PATIENT)
    nodes.submit("stopped", train(run_recipe, *SMALL, "reward.workers=2", "grpo.steps=400"), *options)
    assert comes_true(lambda: nodes.status("stopped").is_terminal() or any(line["step"] > 1 for line in lines(runs)), 400)
    assert nodes.status("stopped") is JobStatus.RUNNING, nodes.logs("stopped")
    actors = nodes.actors("stopped")
    processes = runs_now(actors)
    nodes.job("stop", "stopped")
    return nodes.finish("stopped"), nodes.logs("stopped"), actors, processes


def test_the_roles_of_a_run_spread_over_the_nodes(stopped: tuple[JobStatus, str, list[dict[str, Any]], Any]) -> None:
    _, _, actors, _ = stopped
    assert sorted(actor["class_name"] for actor in actors) == ["LearnerActor", "RewardActor", "StreamingRolloutActor"]
    assert len({actor["node_id"] for actor in actors}) == 2


def test_ray_job_stop_ends_a_run_that_says_how_to_go_on(
    stopped: tuple[JobStatus, str, Any, list[psutil.Process]], run_recipe: Path
) -> None:
    status, logs, _, processes = stopped
    assert status is JobStatus.STOPPED
    (run_dir,) = (run_recipe.parent / "runs" / "tiny").iterdir()
    assert f"Stopped. Go on with: resume={run_dir}" in logs and "Traceback" not in logs
    assert (run_dir / "report.html").exists()
    # Three actors, two reward children.
    assert len(processes) >= 5
    assert comes_true(lambda: are_gone(processes), 60)


@pytest.mark.slow
def test_a_stopped_run_is_resumed_by_another_job(nodes: Nodes, stopped: object, run_recipe: Path) -> None:
    runs = run_recipe.parent / "runs"
    (run_dir,) = (runs / "tiny").iterdir()
    done = max(line["step"] for line in lines(runs))
    goal = (*SMALL, "reward.workers=2", f"grpo.steps={done + 1}", f"resume={run_dir}")
    nodes.submit("resumed", train(run_recipe, *goal), "--entrypoint-num-cpus", "0.5")
    assert nodes.finish("resumed") is JobStatus.SUCCEEDED, nodes.logs("resumed")
    assert nodes.details("resumed")["driver_exit_code"] == 0
    steps = [line["step"] for line in lines(runs)]
    assert steps == list(range(done + 2))
    assert max(line["metrics"].get("mismatch/max", 0.0) for line in lines(runs)) <= 1e-4


def test_a_run_into_rays_copy_of_the_checkout_is_refused(nodes: Nodes) -> None:
    nodes.submit("refused", ["python", "-m", "rl.train", "recipes/locus/tiny.yaml"])
    assert nodes.finish("refused") is JobStatus.FAILED
    assert nodes.details("refused")["driver_exit_code"] == 2
    logs = nodes.job("logs", "refused")
    assert "`runs=runs`" in logs and "`data.train=runs/data/locus-tiny/train`" in logs and "runs=/shared/runs" in logs
    # The tiny model came with the upload.
    assert "model.path" not in logs


def test_a_killed_driver_leaves_nothing_on_any_node(nodes: Nodes, tmp_path: Path) -> None:
    said = tmp_path / "started.json"
    nodes.submit("killed", ["python", "-m", "tests.integration.littering_job", str(said)])
    assert comes_true(lambda: said.exists() or nodes.status("killed").is_terminal(), 200)
    assert said.exists(), nodes.logs("killed")
    found = json.loads(said.read_text())
    assert found["local"] is False
    assert len({actor["node_id"] for actor in nodes.actors("killed")}) == 2
    # Driver and workers run the upload, although the checkout is installed on this machine too.
    origins = {origin for facts in (found["driver"], *found["workers"]) for origin in facts["origins"].values()}
    assert all("working_dir_files" in origin for origin in origins)
    # Ray's workers have a lower priority of their own where nobody asks otherwise.
    assert {psutil.Process(pid).nice() for pid in found["actors"]} == {os.nice(0)}
    processes = [psutil.Process(pid) for pid in (*found["actors"], *found["orphans"])]
    os.kill(int(nodes.details("killed")["driver_info"]["pid"]), signal.SIGKILL)
    assert nodes.finish("killed") is JobStatus.FAILED
    assert comes_true(lambda: are_gone(processes), 60)
    assert comes_true(lambda: not any(Path(segment).exists() for segment in found["segments"]), 30)


def test_what_is_uploaded_from_a_checkout_is_small(tmp_path: Path) -> None:
    """Runs, datasets, environments and caches of a used checkout stay where they are."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    checkout = tmp_path / "checkout"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    clutter = ["runs/x/model.bin", ".venv/lib/big.so", ".venv-gpu/lib/big.so", ".mypy_cache/big", ".git/big", "build/big"]
    for name in (*clutter, "rl/__pycache__/x.pyc", "tests/.pytest_cache/big"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes(os.urandom(1 << 20))
    package = tmp_path / "package.zip"
    excludes = ray_constants.get_runtime_env_default_excludes()
    create_package(str(checkout), package, include_gitignore=True, excludes=excludes)
    # Ray does not compress: 3 MB of it are the tiny model.
    assert package.stat().st_size < 8 << 20
    shutil.unpack_archive(package, tmp_path / "unpacked")
    uploaded = {str(path.relative_to(tmp_path / "unpacked")) for path in (tmp_path / "unpacked").rglob("*")}
    assert uploaded.isdisjoint(clutter) and not any("__pycache__" in name or ".pytest_cache" in name for name in uploaded)
    needed = {"pyproject.toml", "rl/train.py", "data/store.py", "recipes/locus/tiny_model/model.safetensors"}
    assert needed <= uploaded


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [(2, 1, 1), (1, 1, 1, 2)], ids=["three", "four"])
def test_a_run_on_more_nodes(cpus: tuple[int, ...], recipe: Path, tmp_path: Path) -> None:
    """Two learner ranks, a sampler, rewards; on four nodes of their own also a reference. Then the driver is killed."""
    four = len(cpus) == 4
    kl = "algorithm.kl_coefficient=0.01" if four else "algorithm.kl_coefficient=0"
    with started(*cpus) as nodes:
        nodes.submit("run", train(recipe, kl, "rollout.actors=1", "reward.workers=1", "grpo.steps=3"))
        assert nodes.finish("run") is JobStatus.SUCCEEDED, nodes.logs("run")
        actors = nodes.actors("run")
        where = {f"{actor['class_name']} {actor['pid']}": actor["node_id"][:8] for actor in actors}
        print(where)
        assert len(set(where.values())) == len(cpus)
        assert max(line["metrics"].get("mismatch/max", 0.0) for line in lines(tmp_path / "runs")) <= 1e-4
        runs = tmp_path / "killed"
        nodes.submit("killed", train(recipe, kl, "rollout.actors=1", f"runs={runs}", "grpo.steps=400"))
        assert comes_true(lambda: any(line["step"] > 0 for line in lines(runs)), 400), nodes.logs("killed")
        processes = runs_now(nodes.actors("killed"))
        os.kill(int(nodes.details("killed")["driver_info"]["pid"]), signal.SIGKILL)
        assert nodes.finish("killed") is JobStatus.FAILED
        assert comes_true(lambda: are_gone(processes), 60)

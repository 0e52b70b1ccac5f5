"""SLURM script, KubeRay manifest and container file, as far as a machine without SLURM, Kubernetes and Docker can tell."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from cluster.install import PYTHONS
from cluster.nodes import nodes_up
from rl.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
SBATCH = ROOT / "cluster/slurm/train.sbatch"
CONTAINERFILE = ROOT / "cluster/container/Containerfile"

# One task on "its node": the node's name is in the environment, and its address is on loopback.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
  [[ $1 == --nodelist=* ]] && export FAKE_NODE=${1#*=}
  echo "srun $1" >> "$FAKE_LOG"
  shift
done
echo "$FAKE_NODE: $*" >> "$FAKE_LOG"
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1 $2" = "show hostnames" ] && tr , '\\n' <<< "$3"
"""
HOSTNAME = """#!/usr/bin/env bash
echo "fe80::1 127.0.0.${FAKE_NODE#node}"
"""
# A raylet that ends when it is told to.
RAY = """#!/usr/bin/env bash
trap 'echo "$FAKE_NODE: raylet ended" >> "$FAKE_LOG"; exit 0' TERM
echo "$FAKE_NODE: ray $*" >> "$FAKE_LOG"
while true; do sleep 0.05; done
"""
# `cluster.nodes` waits for its count and ends with FAKE_UP. The run ends with FAKE_STATUS; without one it waits for a signal
# and cleans up for a moment.
PYTHON = """#!/usr/bin/env bash
if [ "$2" = cluster.nodes ]; then
  until [ "$(grep -c ": ray start" "$FAKE_LOG")" -ge "$4" ]; do sleep 0.05; done
  exit "${FAKE_UP:-0}"
fi
echo "$FAKE_NODE: RAY_ADDRESS=$RAY_ADDRESS" >> "$FAKE_LOG"
[ -n "$FAKE_STATUS" ] && exit "$FAKE_STATUS"
trap 'sleep 0.3; echo "run stopped" >> "$FAKE_LOG"; exit 143' TERM
echo "run waits" >> "$FAKE_LOG"
while true; do sleep 0.05; done
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Batch:
    """`sbatch --nodes=3` of the script, with the commands of a cluster in its PATH."""

    def __init__(self, folder: Path, nodes: str = "node2,node3,node4", **env: str) -> None:
        self.log = folder / "log"
        self.log.touch()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "hostname": HOSTNAME}.items():
            executable(folder / "bin" / name, text)
        own = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": nodes,
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "FAKE_LOG": str(self.log),
        }
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | own | env

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = ["bash", str(SBATCH), *arguments]
        return subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def said(self) -> list[str]:
        return self.log.read_text().splitlines()


def fake(folder: Path, **env: str) -> Batch:
    executable(folder / "venv/bin/ray", RAY)
    executable(folder / "venv/bin/python", PYTHON)
    return Batch(folder, SIGHTLINE_VENV=str(folder / "venv"), **{"FAKE_STATUS": "", **env})


def test_the_script_is_sound_bash() -> None:
    assert subprocess.run(["bash", "-n", str(SBATCH)], capture_output=True, text=True).stderr == ""
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", str(SBATCH)], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_batch_job_starts_ray_on_every_node_and_ends_as_its_run_does(tmp_path: Path, status: int) -> None:
    batch = fake(tmp_path, FAKE_STATUS=str(status), SLURM_CPUS_PER_TASK="7")
    process = batch.start("recipes/locus/tiny.yaml", "name=two words", "grpo.steps=2")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status, out
    said = batch.said()
    port = 20000 + os.getpid() % 4000 * 3
    started = [line for line in said if ": ray start" in line]
    assert len(started) == 3 and all("--block" in line and "--num-cpus=7" in line for line in started)
    (head,) = (line for line in started if "--head" in line)
    assert head.startswith("node2:") and f"--port={port}" in head and "--node-ip-address=127.0.0.2" in head
    workers = sorted(line for line in started if f"--address=127.0.0.2:{port}" in line)
    assert [line[:6] for line in workers] == ["node3:", "node4:"]
    assert "--node-ip-address=127.0.0.3" in workers[0] and "--node-ip-address=127.0.0.4" in workers[1]
    assert f"node2: python -m cluster.nodes 127.0.0.2:{port} 3 300" in said
    assert f"node2: RAY_ADDRESS=127.0.0.2:{port}" in said
    assert "node2: python -m rl.train recipes/locus/tiny.yaml name=two words grpo.steps=2" in said
    ended = [line for line in said if line.endswith("raylet ended")]
    assert sorted(ended) == [f"node{number}: raylet ended" for number in (2, 3, 4)] and ended[-1].startswith("node2")
    # After a failure the logs are what one wants.
    assert ("are kept in" in out) == (status == 1)


def test_an_approaching_time_limit_stops_the_run_first(tmp_path: Path) -> None:
    batch = fake(tmp_path)
    process = batch.start("recipes/locus/tiny.yaml")
    wait_for(lambda: "run waits" in batch.said())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    said = batch.said()
    assert said.index("run stopped") < min(index for index, line in enumerate(said) if line.endswith("raylet ended"))
    assert len([line for line in said if line.endswith("raylet ended")]) == 3


def test_nodes_that_do_not_come_end_the_job(tmp_path: Path) -> None:
    batch = fake(tmp_path, FAKE_UP="1")
    process = batch.start("recipes/locus/tiny.yaml")
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert not any("rl.train" in line for line in batch.said())
    assert len([line for line in batch.said() if line.endswith("raylet ended")]) == 3


def test_a_job_without_a_recipe_says_how_it_is_used(tmp_path: Path) -> None:
    process = fake(tmp_path).start()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "usage: sbatch" in out


def test_a_container_is_given_to_every_step(tmp_path: Path) -> None:
    settings = {"SIGHTLINE_CONTAINER": "sightline.sqsh", "SIGHTLINE_MOUNTS": "/shared:/shared"}
    batch = fake(tmp_path, FAKE_STATUS="0", **settings)
    batch.env["PATH"] = f"{tmp_path / 'venv/bin'}:{batch.env['PATH']}"  # what the image has
    assert batch.start("recipes/locus/tiny.yaml").wait(60) == 0
    steps = batch.said().count("srun --container-image=sightline.sqsh")
    assert steps >= 6  # address, three raylets, wait, run
    assert batch.said().count(f"srun --container-mounts={ROOT}:{ROOT},/tmp:/tmp,/shared:/shared") == steps


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_head_that_does_not_answer_has_no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client waits for a head; the outcome is what counts here."""
    import ray._raylet
    from ray.exceptions import RpcError

    def silent(**_: object) -> None:
        raise RpcError("Timed out while waiting for GCS to become available.", 4)

    monkeypatch.setattr(ray._raylet, "GcsClient", silent)
    assert nodes_up("127.0.0.1:9") == []


# The fields of ray.io/v1's RayJob (KubeRay's CRD) that have to do with this manifest, by place.
FIELDS = """
spec: activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus entrypointNumGpus
spec: entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec runtimeEnvYAML suspend
spec: shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate ttlSecondsAfterFinished
cluster: authOptions autoscalerOptions enableInTreeAutoscaling headGroupSpec rayVersion workerGroupSpecs
head: enableIngress headService labels rayStartParams resources serviceType template
worker: groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams replicas resources
worker: scaleStrategy suspend template
container: args command env envFrom image imagePullPolicy name ports resources volumeMounts workingDir
volume: configMap emptyDir hostPath name nfs persistentVolumeClaim secret
"""


def fields(place: str) -> set[str]:
    lines = [line.removeprefix(f"{place}: ").split() for line in FIELDS.splitlines() if line.startswith(f"{place}: ")]
    return {name for names in lines for name in names}


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((ROOT / "cluster/kuberay/rayjob.yaml").read_text())
    return manifest


def test_the_manifest_has_only_fields_that_rayjob_has(rayjob: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = rayjob["spec"], rayjob["spec"]["rayClusterSpec"]
    (worker,) = cluster["workerGroupSpecs"]
    assert set(spec) <= fields("spec") and set(cluster) <= fields("cluster")
    assert set(cluster["headGroupSpec"]) <= fields("head") and set(worker) <= fields("worker")
    assert {"groupName", "minReplicas", "maxReplicas", "template"} <= set(worker)
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    for group in (cluster["headGroupSpec"], worker):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert set(container) <= fields("container")
        assert all(set(volume) <= fields("volume") for volume in pod["volumes"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"/dev/shm", "/shared"} == {mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        # `ray start` takes its options as strings.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def submitted(entrypoint: str, folder: Path) -> list[str]:
    """What the head is told to run, where bash does with `entrypoint` as KubeRay's submitter has it do.

    Nothing but `ray` is found: what the line would run in the submitter's own pod fails.
    """
    executable(folder / "ray", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    line = f"set -e ; ray job submit --address http://head:8265 --no-wait --submission-id one -- {entrypoint} ;"
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "-c", line], env={"PATH": str(folder)}, cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()[done.stdout.splitlines().index("--") + 1 :]


def test_the_manifests_run_is_one_that_loads(rayjob: dict[str, Any], tmp_path: Path) -> None:
    words = submitted(rayjob["spec"]["entrypoint"], tmp_path)
    assert words == shlex.split(rayjob["spec"]["entrypoint"]) and words[:3] == ["python", "-m", "rl.train"]
    (workdir,) = re.findall(r"^WORKDIR (\S+)", CONTAINERFILE.read_text(), re.M)
    groups = [rayjob["spec"]["rayClusterSpec"]["headGroupSpec"], *rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert {group["template"]["spec"]["containers"][0]["workingDir"] for group in groups} == {workdir}
    recipe = load_recipe(ROOT / words[3], words[4:])
    (worker,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = worker["replicas"] * int(worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    asked = recipe.rollout.actors * recipe.rollout.tensor_parallel + recipe.learner.ranks
    asked += recipe.reference.ranks if recipe.algorithm.kl_coefficient else 0
    assert asked <= gpus
    mounted = ("/shared/", "/opt/sightline/")
    assert all(path.startswith(mounted) for path in (recipe.runs, recipe.data.train, recipe.data.validation))
    variables = yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())


def test_versions_have_one_source(rayjob: dict[str, Any]) -> None:
    """Ray's in the manifest is the pin; Python's in the container is one that the installer takes; nothing else is named."""
    pins = {Requirement(line).name: str(Requirement(line).specifier) for line in requires("sightline") or ()}
    assert pins["ray"] == f"=={rayjob['spec']['rayClusterSpec']['rayVersion']}"
    text = CONTAINERFILE.read_text()
    python = re.search(r"^FROM \S+/python:(\d+)\.(\d+)-", text, re.M)
    assert python and (int(python[1]), int(python[2])) in PYTHONS
    assert re.findall(r"(?:==|>=)\d", text) == [] and "pip install" not in text


def test_the_container_is_installed_by_the_installer_from_files_that_exist() -> None:
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {word for word, _ in instructions} <= {"FROM", "RUN", "WORKDIR", "ENV", "COPY"}
    copied = [source for word, rest in instructions if word == "COPY" for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert {"rl", "rewards", "data", "recipes", "cluster", "pyproject.toml"} <= set(copied)
    (install,) = (rest for word, rest in instructions if word == "RUN" and "install.py" in rest)
    order = [rest for word, rest in instructions if word in ("RUN", "COPY")]
    # What the installer reads is there before it runs.
    before = " ".join(order[: order.index(install)])
    assert all(name in before for name in ("pyproject.toml", "README.md", "cluster/install.py", "cluster/cpu_wheels.py"))
    helped = [sys.executable, str(ROOT / "cluster/install.py"), "--help"]
    options = subprocess.run(helped, capture_output=True, text=True, check=True).stdout
    assert all(option in options for option in re.findall(r"--\w+", install))


@pytest.mark.slow
def test_a_batch_job_on_two_raylets_of_this_machine(tmp_path: Path) -> None:
    """Real Ray, real run; `srun` only says which node a command is on."""
    options = "--object-store-memory=100000000 --num-gpus=0 --dashboard-agent-listen-port=0"
    venv = str(Path(sys.executable).parent.parent)
    own = {"SIGHTLINE_VENV": venv, "SLURM_CPUS_PER_TASK": "4", "SIGHTLINE_RAY_OPTIONS": options, "RAY_AUTH_MODE": "disabled"}
    batch = Batch(tmp_path, nodes="node2,node3", **own)
    data = [f"data.train={tmp_path}/locus-tiny/train", f"data.validation={tmp_path}/locus-tiny/held_out"]
    small = ["grpo.steps=1", "validation.samples=4", "validation.sampled=false", f"runs={tmp_path}/runs"]
    process = batch.start("recipes/locus/tiny.yaml", *data, *small)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    assert "2 nodes are up: 127.0.0.2, 127.0.0.3" in out
    (run_dir,) = (tmp_path / "runs/locus-tiny").iterdir()
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 1
    assert not Path(f"/tmp/ray-{os.getpid()}").exists()

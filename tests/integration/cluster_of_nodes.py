"""A Ray cluster of several raylets on this machine, each with a loopback address of its own, and jobs on it.

`python -m tests.integration.cluster_of_nodes CPUS [CPUS …]` starts a raylet for every number, prints where they are as one
line of JSON, and ends them when its input closes. `started(CPUS, …)` does so for tests; `Nodes` submits and asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import requests
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"
HEAD = "127.0.0.2"  # the next node is 127.0.0.3: told apart as machines are, and reached by nobody else
OBJECT_STORE = 100 << 20


@dataclass(frozen=True)
class Nodes:
    """A running cluster: `address` is the Jobs API's, `gcs` what RAY_ADDRESS is to a driver."""

    address: str
    gcs: str
    directory: Path
    env: dict[str, str]

    def job(self, command: str, *arguments: str, check: bool = True) -> str:
        """`ray job COMMAND …` as a user types it; what it prints."""
        line = [str(RAY), "job", command, "--address", self.address, *arguments]
        done = subprocess.run(line, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, job: str, entrypoint: Sequence[str], *options: str, working_dir: Path = ROOT) -> None:
        where = ("--no-wait", "--submission-id", job, "--working-dir", str(working_dir))

        def accepted() -> bool:
            said = self.job("submit", *where, *options, "--", *entrypoint, check=False)
            assert "submitted successfully" in said or "No available agent" in said, said
            return "submitted successfully" in said

        # The agent that runs jobs is up some seconds after its node.
        assert comes_true(accepted, 120.0)

    def details(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self._get(f"api/jobs/{job}")
        return found

    def status(self, job: str) -> JobStatus:
        return JobStatus(self.details(job)["status"])

    def logs(self, job: str) -> str:
        return str(self._get(f"api/jobs/{job}/logs")["logs"])

    def finish(self, job: str, seconds: float = 400.0) -> JobStatus:
        """Wait until the job has ended, somehow."""
        comes_true(lambda: self.status(job).is_terminal(), seconds)
        return self.status(job)

    def actors(self, job: str) -> list[dict[str, Any]]:
        """The job's own actors, dead or alive, as Ray's state API describes them."""
        driver = self.details(job)["driver_info"]
        query = f"api/v0/actors?detail=1&limit=1000&filter_keys=job_id&filter_predicates=%3D&filter_values={driver['id']}"
        found = self._get(query)["data"]["result"]["result"]
        return [actor for actor in found if not actor["class_name"].startswith("JobSupervisor")]

    def _get(self, path: str) -> Any:
        token = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        answer = requests.get(f"{self.address}/{path}", headers=token, timeout=60)
        answer.raise_for_status()
        return answer.json()


@contextlib.contextmanager
def started(*cpus: int) -> Iterator[Nodes]:
    """Raylets with so many CPUs each for the length of a `with` block, in a process of their own."""
    directory = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | own
    command = [sys.executable, "-m", "tests.integration.cluster_of_nodes", str(directory), *map(str, cpus)]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    family = [psutil.Process(process.pid)]
    try:
        assert process.stdout is not None
        where = json.loads(process.stdout.readline())
        family += family[0].children(recursive=True)
        yield Nodes(where["address"], where["gcs"], directory, env)
    finally:
        process.communicate("")
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        shutil.rmtree(directory, ignore_errors=True)


def comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return met


def main(directory: str, cpus: Sequence[int]) -> None:
    # The agents' own default port is the same on every node, and bound on 127.0.0.1 too.
    common = {"object_store_memory": OBJECT_STORE, "temp_dir": directory, "dashboard_agent_listen_port": None}
    head = {"include_dashboard": True, "dashboard_host": HEAD, "dashboard_port": 0, "node_ip_address": HEAD}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], **head, **common})
    # Where Ray's job supervisor looks for the cluster it runs in; `ray start` writes it there.
    ray._private.utils.write_ray_address(cluster.gcs_address, directory)
    first, _, last = HEAD.rpartition(".")
    for number, count in enumerate(cpus[1:], start=1):
        cluster.add_node(num_cpus=count, node_ip_address=f"{first}.{int(last) + number}", **common)
    print(json.dumps({"address": f"http://{cluster.webui_url}", "gcs": cluster.gcs_address}), flush=True)
    sys.stdin.read()
    cluster.shutdown()
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(argument) for argument in sys.argv[2:]])

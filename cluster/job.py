"""What a program submitted with `ray job submit` knows of its job: its environment, and the folder it was uploaded in.

Ray unpacks the submitted working directory on every node into a cache of its own and runs the program there. What a program
writes in that copy goes with the cluster, and no other node sees it. Reads the environment only: Ray is not imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Set by Ray's job supervisor for the program it starts.
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def job_environment() -> Mapping[str, str]:
    """The `env_vars` this program's job was submitted with, which its actors get too; empty outside a job."""
    return dict(_runtime_env().get("env_vars") or {})


def uploaded_folder() -> Path | None:
    """Ray's copy of the submitted working directory, if this program runs inside of it; None outside a job.

    A program whose entrypoint changes to a folder of its own (`cd /shared/sightline && …`) does not run inside.
    """
    package = str(_runtime_env().get("working_dir") or "")
    if "://" not in package or package.startswith("local://"):
        return None
    name = Path(package).stem
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if folder.name == name), None)


def _runtime_env() -> dict[str, Any]:
    submitted = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    return dict(submitted.get("runtime_env") or {})

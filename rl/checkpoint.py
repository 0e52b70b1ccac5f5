"""Checkpoints of a run: the learner's shards, the data position and the loop's counters, whole or not at all.

    runs/<name>/checkpoints/grpo-50/{learner/…, state.json}

A checkpoint is written under a temporary name and renamed, so whatever bears its name can be resumed from.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cluster.group import ActorError
from rl.config import ModelConfig
from rl.protocols import PolicyLearner

DIRECTORY = "checkpoints"
STAGE_FILE = "stage.json"  # in an export: which stage and step it is of


# What a rank says that could not write: Python, the file system, torch's own writer of files.
_DISK = re.compile(r"\b(OSError|PermissionError)\b|No space left|Disk quota|Read-only file system|PytorchStreamWriter")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; earlier ones are untouched."""


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint: `stage` and the number of steps of it that are done, and the state beside the weights."""

    path: Path
    stage: str
    step: int
    state: Mapping[str, Any]

    @property
    def learner(self) -> Path:
        return self.path / "learner"


def save_checkpoint(
    run_dir: Path, stage: str, step: int, learner: PolicyLearner, state: Mapping[str, Any], keep: int
) -> Checkpoint:
    """Write `<stage>-<step>`, then forget all but the `keep` newest of this stage.

    Raises CheckpointError when the disk does not take it, and the learner's ActorError for anything else.
    """
    path = run_dir / DIRECTORY / f"{stage}-{step}"
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "learner").mkdir(parents=True)
        learner.save(partial / "learner")
        (partial / "state.json").write_text(json.dumps({"stage": stage, "step": step, **state}))
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    except (OSError, ActorError) as error:
        free = shutil.disk_usage(run_dir).free / 2**20
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, ActorError) and not _DISK.search(str(error)):
            raise
        raise CheckpointError(
            f"checkpoint {path} could not be written ({free:.0f} MiB are free there): {str(error).splitlines()[0]}\n"
            f"Earlier checkpoints are whole; make room, then go on with resume={run_dir}"
        ) from error
    for old in list_checkpoints(run_dir, stage)[: -keep or None]:
        if old != step:
            shutil.rmtree(run_dir / DIRECTORY / f"{stage}-{old}")
    return Checkpoint(path, stage, step, state)


def saved_policy(place: Path, model: ModelConfig) -> Path:
    """The learner's folder in `place`, a run (its newest checkpoint) or one checkpoint of it, for a stage to begin with.

    Raises CheckpointError where there is none, or where its run trained another kind of policy than `model`.
    """
    run_dir = place if (place / "config.yaml").exists() else place.parent.parent
    if not (run_dir / "config.yaml").exists():
        raise CheckpointError(
            f"start_from={place} is neither a run, runs/<name>/<time>, nor a checkpoint of one; an exported model goes into "
            "model.path"
        )
    saved = OmegaConf.load(run_dir / "config.yaml")
    checkpoint = latest_checkpoint(run_dir, list(saved.stages)).path if place == run_dir else place
    if not (checkpoint / "state.json").exists():
        raise CheckpointError(
            f"start_from={place}: {checkpoint} is no finished checkpoint; those of the run are in {run_dir / DIRECTORY}"
        )
    shape: dict[str, object] = {"path": model.path, "quantization": model.quantization, "lora.rank": model.lora.rank}
    if model.lora.rank:
        shape |= {"lora.alpha": model.lora.alpha, "lora.targets": list(model.lora.targets)}
    for key, wanted in shape.items():
        found = OmegaConf.select(saved.model, key)
        if found != wanted:
            raise CheckpointError(
                f"start_from={place} was trained with model.{key}={found}, this recipe has {wanted}; make them agree, or "
                f"give the exported folder, {run_dir / 'export'}, as model.path"
            )
    return checkpoint / "learner"


def list_checkpoints(run_dir: Path, stage: str) -> list[int]:
    """Steps of the finished checkpoints of a stage, ascending."""
    found = (run_dir / DIRECTORY).glob(f"{stage}-*")
    return sorted(int(path.name.rpartition("-")[2]) for path in found if (path / "state.json").exists())


def latest_checkpoint(run_dir: Path, stages: list[str]) -> Checkpoint:
    """The newest checkpoint of the latest stage that has one. Raises CheckpointError when there is none."""
    for stage in reversed(stages):
        steps = list_checkpoints(run_dir, stage)
        if steps:
            path = run_dir / DIRECTORY / f"{stage}-{steps[-1]}"
            state = json.loads((path / "state.json").read_text())
            return Checkpoint(path, stage, steps[-1], state)
    raise CheckpointError(f"{run_dir} holds no checkpoint of {' or '.join(stages)}; start the recipe without resume=")

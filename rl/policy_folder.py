"""From what a user calls a checkpoint to a Hugging Face model folder that a backend loads.

nothing                     the recipe's model.path: the baseline
exported model folder       itself                               config.json and weights
run folder                  its export/                          config.yaml
checkpoint folder of a run  its export/, made when missing       state.json and learner/ (sharded weights)
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf

from rl.checkpoint import STAGE_FILE, latest_checkpoint
from rl.config import Recipe, load_recipe

WEIGHTS = ("*.safetensors", "*.bin")


class PolicyFolderError(ValueError):
    """What `checkpoint=` names is no model; the message says what was looked for."""


@dataclass(frozen=True)
class PolicyFolder:
    """A model to evaluate: `path` is a folder or a hub id, `kind` how it was found."""

    path: str
    kind: Literal["base model", "export", "run", "checkpoint"]


def policy_folder(checkpoint: str | None, recipe: Recipe) -> PolicyFolder:
    """Find the model, and write it out where a run has it as shards only. Raises PolicyFolderError."""
    if checkpoint is None:
        return PolicyFolder(recipe.model.path, "base model")
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise PolicyFolderError(f"checkpoint={checkpoint}: there is no such folder; for a model of the hub use model.path=")
    if (folder / "config.json").is_file():
        return PolicyFolder(str(_whole(folder)), "export")
    if (folder / "state.json").is_file() and (folder / "learner").is_dir():
        return PolicyFolder(str(_materialized(folder, recipe)), "checkpoint")
    if (folder / "config.yaml").is_file():
        return PolicyFolder(str(_export_of(folder)), "run")
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise PolicyFolderError(
        f"checkpoint={checkpoint}: looked for config.json (an exported model), config.yaml (a run) and state.json beside "
        f"learner/ (a checkpoint of a run); the folder holds {held}"
    )


def _whole(folder: Path) -> Path:
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise PolicyFolderError(f"{folder} has a config.json but no weights ({' or '.join(WEIGHTS)})")
    return folder


def _export_of(run_dir: Path) -> Path:
    export = run_dir / "export"
    if (export / "config.json").is_file():
        _check_newest(run_dir, export)
        return _whole(export)
    saved = sorted(str(path.parent) for path in run_dir.glob("checkpoints/*/state.json"))
    remedy = f"give one of its checkpoints: {', '.join(saved)}" if saved else "and it has no checkpoint either"
    raise PolicyFolderError(f"run {run_dir} has no export/, which a stage writes when it ends; {remedy}")


def _check_newest(run_dir: Path, export: Path) -> None:
    """A run that was stopped in its second stage still has the first one's export."""
    if not (export / STAGE_FILE).is_file() or not any(run_dir.glob("checkpoints/*/state.json")):
        return
    exported = json.loads((export / STAGE_FILE).read_text())
    newest = latest_checkpoint(run_dir, list(OmegaConf.load(run_dir / "config.yaml").stages))
    if (newest.stage, newest.step) != (exported["stage"], exported["step"]):
        raise PolicyFolderError(
            f"run {run_dir} has exported step {exported['step']} of {exported['stage']}, and went on to step {newest.step} "
            f"of {newest.stage}: give checkpoint={export} or checkpoint={newest.path}"
        )


def _materialized(checkpoint: Path, recipe: Recipe) -> Path:
    """`checkpoint`/export, made on one rank from the shards unless it is there."""
    export = checkpoint / "export"
    if not (export / "config.json").is_file():
        # In a process of its own, because what it held of a GPU stays held until it ends, and a backend wants that memory.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
            child.submit(_write_export, checkpoint / "learner", export, _recipe_of(checkpoint, recipe)).result()
    return _whole(export)


def _recipe_of(checkpoint: Path, recipe: Recipe) -> Recipe:
    """The run's own recipe, whose model the shards belong to; that of the evaluation when the checkpoint was moved."""
    config = checkpoint.resolve().parent.parent / "config.yaml"
    return load_recipe(config) if config.is_file() else recipe


def _write_export(shards: Path, export: Path, recipe: Recipe) -> None:
    from rl.engines.base import Rendezvous
    from rl.export import export_policy
    from rl.learner import Learner
    from rl.prompting import PromptEncoder

    encoder = PromptEncoder.of(recipe.model)
    learner = Learner(recipe.model, recipe.learner, None, encoder, Rendezvous(), temperature=1.0)
    try:
        learner.engine.load_policy(shards)
        export_policy(learner, export)
    finally:
        learner.close()

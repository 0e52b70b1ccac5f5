"""The shape of a model from its config.json alone: every parameter's size, block by block, as transformers builds it.

    model.path ──► config.json of the folder or of rl/plan/facts ──► architecture ──► LoRA, frozen parts ──► ModelShape

Nothing is downloaded and no module is built: arithmetic, in a millisecond.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rl.config import LoraConfig, ModelConfig
from rl.plan.architectures import architecture_of
from rl.plan.parameters import Kind, LanguageShape, ParameterBlock, ParameterShape, VisionShape

FACTS = Path(__file__).parent / "facts"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as the planner sees it, LoRA matrices included. A tied head has no parameters of its own: `tied`."""

    name: str
    model_type: str
    blocks: tuple[ParameterBlock, ...]
    language: LanguageShape
    vision: VisionShape
    tied: bool

    @property
    def numel(self) -> int:
        return sum(block.numel * block.count for block in self.blocks)

    @property
    def numel_trainable(self) -> int:
        return sum(block.numel_trainable * block.count for block in self.blocks)

    @property
    def numel_adapter(self) -> int:
        return sum(block.numel_adapter * block.count for block in self.blocks)

    @property
    def numel_base(self) -> int:
        """Without the LoRA matrices: what a rollout engine loads, and what the model's name counts."""
        return self.numel - self.numel_adapter

    def of_kind(self, *kinds: Kind) -> tuple[ParameterBlock, ...]:
        return tuple(block for block in self.blocks if block.kind in kinds)


def shape_of(model: ModelConfig) -> ModelShape:
    """The shape of `model.path` with the recipe's adapters and frozen parts.

    Raises ValueError for what is neither a folder with a config.json nor among the facts that ship.
    """
    config = _read_config(model.path)
    architecture = architecture_of(config)
    blocks = tuple(_as_trained(block, model) for block in architecture.blocks)
    name = model.path.rstrip("/").rsplit("/", 1)[-1]
    return ModelShape(name, config["model_type"], blocks, architecture.language, architecture.vision, architecture.tied)


def shipped() -> dict[str, Path]:
    """Hub ids whose config.json ships, and the file of each; several may share one."""
    return {model: path for path in sorted(FACTS.glob("*.json")) for model in json.loads(path.read_text())["models"]}


def _read_config(path: str) -> Mapping[str, Any]:
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model.path={path} has no config.json, which says how large the model is")
        own: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return own
    known = shipped()
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"model.path={path}: {hint}there is no such folder, and the planner ships the configs of "
            f"{', '.join(sorted(known))}. For another model of these families give a folder that holds its config.json."
        )
    config: dict[str, Any] = json.loads(known[path].read_text())["config"]
    return config


def _as_trained(block: ParameterBlock, model: ModelConfig) -> ParameterBlock:
    """A block as `rl.policy.build_model` leaves it: LoRA beside frozen weights, or a frozen image tower."""
    if model.lora.rank:
        return replace(block, parameters=_with_adapters(block, model.lora, packed=model.quantization is not None))
    if model.freeze_vision and block.kind in ("vision", "projector"):
        return replace(block, parameters=tuple(replace(each, trainable=False) for each in block.parameters))
    return block


def _with_adapters(block: ParameterBlock, lora: LoraConfig, packed: bool) -> tuple[ParameterShape, ...]:
    """Frozen parameters and the A and B of those that are targets: linear layers inside the language model."""
    inside = ".language_model." in f"{block.name}."
    parameters = []
    for each in block.parameters:
        module = each.name.removesuffix(".weight")
        linear = inside and each.linear
        parameters.append(replace(each, trainable=False, packed=packed and linear))
        if linear and re.search(rf"(^|\.)({'|'.join(lora.targets)})$", module):
            outputs, inputs = each.shape
            parameters.append(ParameterShape(f"{module}.lora_A", (lora.rank, inputs), adapter=True, linear=True))
            parameters.append(ParameterShape(f"{module}.lora_B", (outputs, lora.rank), adapter=True, linear=True))
    return tuple(parameters)

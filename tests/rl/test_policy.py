"""The policy: what counts as vision, on every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl.config import ModelConfig
from rl.policy import build_model
from rl.tiny_backbone import write
from tests.rl.families_case import ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_freezing_the_vision_side_leaves_the_language_model_alone(tmp_path: Path, architecture: str) -> None:
    write(tmp_path, architecture=architecture)
    config = ModelConfig(path=str(tmp_path), freeze_vision=True)
    model = build_model(config, torch.float32, torch.float32, torch.device("cpu"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("model.language_model.")}
    assert len(trained) < len(list(model.named_parameters()))

"""A tiny random model and a small dataset, built once, and a recipe over them in every test's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.config import LocusConfig, SizeBin
from data.locus import build_locus
from data.synthetic import SceneSpec, write_coco
from rl.tiny_backbone import write
from tests.integration.runs import write_recipe


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write(directory, seed=0)
    return directory


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    annotations = write_coco(root / "coco", 40, seed=0, spec=SceneSpec())
    config = LocusConfig(
        train_samples=40, validation_samples=8, bins={"any": SizeBin(0, 1)}, mix={"any": 1.0}, augmented_bins=()
    )
    build_locus(annotations, root / "coco" / "train", root / "locus", config)
    return root / "locus"


@pytest.fixture
def recipe(tmp_path: Path, model_dir: Path, data_dir: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", model_dir, data_dir, tmp_path / "runs")

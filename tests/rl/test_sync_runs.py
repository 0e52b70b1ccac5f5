"""Whole runs over the transports that are not a machine's own choice: weights, adapters, and a quantized base with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.config import LocusConfig, SizeBin
from data.locus import build_locus
from data.synthetic import SceneSpec, write_coco
from tests.integration.runs import run, write_recipe

TINY = ("algorithm.kl_coefficient=0", "grpo.steps=2", "checkpoint.every=0", "sync.bucket_mb=1")
LORA = ("model.lora.rank=4",)
QLORA = (*LORA, "model.quantization=nf4")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    annotations = write_coco(root / "coco", 20, seed=0, spec=SceneSpec())
    bins = {"any": SizeBin(0, 1)}
    config = LocusConfig(train_samples=20, validation_samples=4, bins=bins, mix={"any": 1.0}, augmented_bins=())
    build_locus(annotations, root / "coco" / "train", root / "locus", config)
    return root / "locus"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "overrides"), [("gloo", ()), ("object_store", ()), ("gloo", LORA), ("object_store", LORA), ("ipc", QLORA)]
)
def test_samplers_compute_what_the_learner_sent(
    tmp_path: Path, tiny_model_dir: Path, data_dir: Path, transport: str, overrides: tuple[str, ...]
) -> None:
    """Two FSDP2 ranks, two samplers: every step's first update finds the sampler's logprobs equal to its own."""
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_model_dir, data_dir, tmp_path / "runs")
    done = run(recipe, *TINY, f"sync.transport={transport}", *overrides)
    assert done.status == 0, done.err
    mismatches = [line["metrics"]["mismatch/max"] for line in done.metrics() if "mismatch/max" in line["metrics"]]
    assert len(mismatches) == 2
    assert max(mismatches) <= 1e-4

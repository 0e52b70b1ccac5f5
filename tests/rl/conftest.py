"""Fixtures of the rl tests: a random tiny model and a few samples, built once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.box import Box
from data.prompts import locus_prompt
from data.sample import Sample
from rl.tiny_backbone import write
from tests.rl.pictures import png


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL-architecture model with random weights."""
    directory = tmp_path_factory.mktemp("tiny")
    write(directory, seed=0)
    return directory


@pytest.fixture(scope="session")
def tiny_samples() -> list[Sample]:
    """Scene and cue of several sizes; any pixel limits give several prompt lengths."""
    rng = np.random.default_rng(11)
    sizes = [((112, 112), (28, 28)), ((170, 110), (33, 40)), ((64, 200), (90, 30)), ((300, 280), (56, 70))]
    samples = []
    for number, (scene, cue) in enumerate(sizes):
        images = (png(rng, *scene), png(rng, *cue))
        samples.append(Sample(f"tiny-{number}", "test", images, locus_prompt(), Box(5, 6, 25, 36, images[0].frame)))
    return samples

"""Settings that cannot work are refused by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cluster.config import ClusterConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [("placement_timeout_s", 0.0), ("start_timeout_s", -1.0), ("local_cpus", 0), ("local_object_store_mb", 10)],
)
def test_a_bad_value_names_its_key(key: str, value: float) -> None:
    ClusterConfig().validate()
    with pytest.raises(ValueError, match=f"cluster.{key}.*{value}"):
        ClusterConfig(**{key: value}).validate()  # type: ignore[arg-type]


def test_the_configs_import_neither_torch_nor_ray() -> None:
    code = "import sys, cluster.config, rewards.config; print({'torch', 'ray', 'vllm'} & set(sys.modules))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "set()"

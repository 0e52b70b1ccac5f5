"""The evaluation as a user starts it, with the recipe's rollout actors on Ray and with Hugging Face alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rl.demo import RECIPES
from tests.integration.runs import environment
from tests.rl.locus_case import write_locus


def evaluated(out: Path, *arguments: str) -> list[dict[str, Any]]:
    """The records of one evaluation."""
    command = [sys.executable, "-m", "rl.evaluate", str(RECIPES / "tiny.yaml"), f"out={out}", "pictures=0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def test_both_backends_write_the_same_records(tmp_path: Path) -> None:
    data = f"data.validation={write_locus(tmp_path / 'data', 6)}"
    on_ray = evaluated(tmp_path / "vllm", data)
    assert len(on_ray) == 6 and all(record["prediction"] for record in on_ray)
    assert evaluated(tmp_path / "hf", data, "backend=hf") == on_ray

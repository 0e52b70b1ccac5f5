"""Runs of the real program as a user starts it: a tiny recipe, subprocesses, and what they may not leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

RECIPE = """
name: tiny
model: {{path: {model}}}
data: {{train: {data}, validation: {data}}}
mismatch_bound: 1.0e-4
rollout: {{actors: 2, max_tokens: 12, max_model_len: 160, dtype: float32, kv_cache_mib: 32, max_num_seqs: 32,
          enforce_eager: true}}
learner: {{ranks: 2, dtype: float32, tokens_per_micro_batch: 1024, activation_checkpointing: false}}
algorithm: {{kl_coefficient: 0.01}}
reward: {{name: "tests.integration.user_rewards:letters"}}
grpo: {{steps: 4, prompts_per_step: 4, prompts_per_update: 4, num_generations: 3, optimizer: {{lr: 1.0e-3}}}}
validation: {{every: 0, samples: 4, sampled: false}}
checkpoint: {{every: 2, keep: 2}}
tracking: {{sinks: [console, jsonl]}}
runs: {runs}
"""


@dataclass(frozen=True)
class Finished:
    """A run that ended: its exit status, what it printed, and its folder if it made one."""

    status: int
    out: str
    err: str
    run_dir: Path | None

    def metrics(self) -> list[dict[str, Any]]:
        assert self.run_dir is not None, self.err
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]


def write_recipe(path: Path, model: Path, data: Path, runs: Path) -> Path:
    path.write_text(RECIPE.format(model=model, data=data, runs=runs))
    return path


def command(recipe: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "rl.train", str(recipe), *overrides]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(extra or {})}


def run(recipe: Path, *overrides: str, env: Mapping[str, str] | None = None) -> Finished:
    done = subprocess.run(command(recipe, *overrides), capture_output=True, text=True, env=environment(env), timeout=500)
    return finished(recipe, done.returncode, done.stdout, done.stderr)


def finished(recipe: Path, status: int, out: str, err: str) -> Finished:
    made = sorted((recipe.parent / "runs" / "tiny").glob("*"))
    return Finished(status, out, err, made[-1] if made else None)


def run_until(recipe: Path, line: str, number: signal.Signals, *overrides: str) -> Finished:
    """Start a run, send it a signal when its metrics hold `line`, and wait for its end."""
    process = subprocess.Popen(
        command(recipe, *overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        logs = list((recipe.parent / "runs").glob("tiny/*/metrics.jsonl"))
        if any(line in log.read_text() for log in logs):
            break
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return finished(recipe, process.returncode, out, err)


def left_behind(since: float) -> list[str]:
    """Ray, vLLM and run processes started after `since`, and shared memory made after it."""
    words = ("ray::", "raylet", "gcs_server", "rl.train", "rewards.child")
    found = []
    for process in psutil.process_iter(["pid", "create_time", "cmdline"]):
        shown = " ".join(process.info["cmdline"] or [])
        if process.info["create_time"] >= since and any(word in shown for word in words):
            found.append(f"{process.info['pid']} {shown[:120]}")
    segments = [path for path in Path("/dev/shm").iterdir() if path.stat().st_mtime >= since]
    return found + [str(path) for path in segments]


def wait_until_clean(since: float, seconds: float = 20.0) -> list[str]:
    """What is still left after giving processes a moment to end."""
    deadline = time.monotonic() + seconds
    while (left := left_behind(since)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left

"""Start-up: from `python -m rl.train` to the first step, by part, against a bare vLLM engine that starts in one process.

    python -m tests.bench.bench_startup [--rounds 3] [--json]

Parts, by what the run leaves: the folder (recipe checked, plan made, imports), the first line of metrics (Ray, all actors
with their models, weights published, two held-out samples validated), the second line (the first step). The bare engine
imports vLLM, builds the same engine and writes one token. The two take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from cluster.install import detect_device
from data.tiny_sets import make_missing
from rl.config import load_recipe
from rl.demo import RECIPES
from rl.sampler_config import Device, sampler_env
from tests.bench.rows import Row, ratio_of, table_of

NAME = "Start-up"
POLL_S = 0.02
SILENT_S = 300.0
BARE = """
from vllm import LLM, SamplingParams
engine = LLM({model!r}, dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=64 << 20,
             limit_mm_per_prompt={{"image": 2, "video": 0}}, enable_chunked_prefill=False, max_num_batched_tokens=4096)
engine.generate(["Where?"], SamplingParams(max_tokens=1), use_tqdm=False)
print("ready", flush=True)
"""


@dataclass(frozen=True)
class Start:
    """Seconds from the command to each of the three."""

    folder: float
    actors: float
    step: float


class StartError(RuntimeError):
    """The command ended, or took too long, before it got there; the message has what it printed."""


def _wait(reached: Callable[[], bool], process: subprocess.Popen[str], log: Path, began: float) -> float:
    while not reached():
        if process.poll() is not None or time.perf_counter() - began > SILENT_S:
            raise StartError(log.read_text()[-2000:])
        time.sleep(POLL_S)
    return time.perf_counter() - began


def start_run(folder: Path) -> Start:
    """One run of recipes/locus/tiny.yaml, one step long."""
    settings = [f"runs={folder / 'runs'}", "grpo.steps=1", "validation.every=0", "validation.samples=2"]
    settings += ["validation.sampled=false", "checkpoint.every=0", "tracking.sinks=[jsonl]"]
    log = folder / "log"

    def lines() -> int:
        return sum(path.read_text().count("\n") for path in folder.glob("runs/*/*/metrics.jsonl"))

    began = time.perf_counter()
    with log.open("w") as out:
        command = [sys.executable, "-m", "rl.train", str(RECIPES / "tiny.yaml"), *settings]
        process = subprocess.Popen(command, stdout=out, stderr=out, text=True)
        created = _wait(lambda: any(folder.glob("runs/*/*")), process, log, began)
        first = _wait(lambda: lines() >= 1, process, log, began)
        # The last step of a run is logged after it was validated and saved; what it says of itself is the step alone.
        _wait(lambda: lines() >= 2, process, log, began)
        if process.wait(SILENT_S):
            raise StartError(log.read_text()[-2000:])
    (metrics,) = folder.glob("runs/*/*/metrics.jsonl")
    step = json.loads(metrics.read_text().splitlines()[1])["metrics"]["time/step"]
    return Start(created, first, first + step)


def start_bare(folder: Path) -> float:
    """Seconds until a bare engine has written a token."""
    model = str((RECIPES / "tiny_model").resolve())
    log = folder / "bare"
    began = time.perf_counter()
    with log.open("w") as out:
        device: Device = "gpu" if detect_device() == "gpu" else "cpu"
        environment = dict(os.environ) | sampler_env(device, model)
        process = subprocess.Popen(
            [sys.executable, "-c", BARE.format(model=model)], stdout=out, stderr=out, text=True, env=environment
        )
        seconds = _wait(lambda: "ready" in log.read_text().splitlines(), process, log, began)
        process.wait(SILENT_S)
    return seconds


def rows(quick: bool, rounds: int | None = None) -> list[Row]:
    recipe = load_recipe(RECIPES / "tiny.yaml")
    make_missing("locus", [Path(recipe.data.train), Path(recipe.data.validation)])
    starts, bare = [], []
    for _ in range(rounds or (2 if quick else 3)):
        with tempfile.TemporaryDirectory() as folder:
            bare.append(start_bare(Path(folder)))
            starts.append(start_run(Path(folder)))
    engine, how = f"bare engine {statistics.median(bare):.1f} s", f"{len(starts)} starts of each, in turn"
    ratio = ratio_of(bare, [start.step for start in starts])
    parts = {
        "until the run's folder: recipe, plan, imports": [start.folder for start in starts],
        "then Ray, actors, models, two validations": [start.actors - start.folder for start in starts],
        "then the first step": [start.step - start.actors for start in starts],
    }
    total = statistics.median(start.step for start in starts)
    whole = Row(
        "from the command to the end of the first step", total, "s", engine, ratio.median, how, ratio.low, ratio.high
    )
    return [whole, *(Row.part(name, statistics.median(values), "s", total) for name, values in parts.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = rows(False, arguments.rounds)
    if arguments.json:
        print(json.dumps([asdict(row) for row in found]))
    else:
        Console(width=160).print(table_of({NAME: found}, "Start-up of recipes/locus/tiny.yaml"))


if __name__ == "__main__":
    main()

"""One learner update with a group as one sequence against one row an answer, on the tiny model, by prompt length.

    python -m tests.bench.bench_shared_prefix [--repeats 5] [--json]

Both paths run in turn in one process on one thread; the ratio is of their medians. The floor is the ratio of tokens
computed: G · (P + R) / (P + G · R).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data.box import Box
from data.prompts import locus_prompt
from data.sample import Sample
from rewards.score import Score
from rl.advantages import group_advantages
from rl.batch import Group, balance, group_batch
from rl.config import AlgorithmConfig, LearnerConfig, ModelConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.learner import Learner
from rl.objectives import GrpoObjective
from rl.prompting import PromptEncoder
from rl.records import Rollout
from rl.tiny_backbone import write
from tests.rl.pictures import png

ANSWERS, ANSWER_TOKENS, GROUPS = 8, 32, 2
SIDES = (112, 224, 448, 896)  # scene sizes in pixels: 16, 64, 256 and 1,024 image tokens


def batch_of(encoder: PromptEncoder, side: int):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(side)
    groups = []
    for number in range(GROUPS):
        images = (png(rng, side, side), png(rng, 56, 56))
        sample = Sample(f"{side}-{number}", "bench", images, locus_prompt(), Box(1, 1, 50, 50, images[0].frame))
        prompt = encoder.prompt_length(sample)
        tokens = [tuple(int(t) for t in rng.integers(300, 700, ANSWER_TOKENS)) for _ in range(ANSWERS)]
        rollouts = tuple(Rollout(sample.id, t, (0.0,) * ANSWER_TOKENS, "", "stop", 0, prompt) for t in tokens)
        groups.append(Group(sample, rollouts, tuple(Score(float(r)) for r in rng.random(ANSWERS))))
    batch = group_batch(groups)
    batch.batch["advantages"] = group_advantages(batch, AlgorithmConfig())
    return batch, groups[0].rollouts[0].prompt_tokens


def seconds(learner: Learner, batch, layout: str) -> float:  # type: ignore[no-untyped-def]
    learner.config.layout = layout
    share = balance(batch, 1, 1 << 20, layout)[0]
    began = time.perf_counter()
    learner.update(share, GrpoObjective(AlgorithmConfig()), lr=0.0)
    return time.perf_counter() - began


def measure(repeats: int) -> list[dict[str, float]]:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        model = ModelConfig(path=folder, min_pixels=28 * 28, max_pixels=896 * 896)
        config = LearnerConfig(dtype="float32", activation_checkpointing=False)
        learner = Learner(model, config, OptimizerConfig(), PromptEncoder.of(model), Rendezvous(), temperature=1.0)
        for side in SIDES:
            batch, prompt = batch_of(learner.encoder, side)
            taken: dict[str, list[float]] = {"shared": [], "plain": []}
            for repeat in range(repeats + 1):
                for layout, times in taken.items():
                    spent = seconds(learner, batch, layout)
                    if repeat:
                        times.append(spent)
            shared, plain = (statistics.median(taken[layout]) for layout in ("shared", "plain"))
            floor = ANSWERS * (prompt + ANSWER_TOKENS) / (prompt + ANSWERS * ANSWER_TOKENS)
            row = {"prompt_tokens": prompt, "shared_s": shared, "plain_s": plain, "ratio": plain / shared, "floor": floor}
            rows.append(row)
        learner.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="a group as one sequence against one row an answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rows = measure(arguments.repeats)
    if arguments.json:
        print(json.dumps(rows))
        return
    table = Table(title=f"Learner update, {GROUPS} groups × {ANSWERS} answers × {ANSWER_TOKENS} tokens, one thread")
    for column in ("prompt tokens", "one row an answer, s", "one sequence a group, s", "faster", "fewer tokens"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = (f"{row['prompt_tokens']:.0f}", f"{row['plain_s']:.3f}", f"{row['shared_s']:.3f}")
        table.add_row(*cells, f"{row['ratio']:.2f}×", f"{row['floor']:.2f}×")
    Console().print(table)


if __name__ == "__main__":
    main()

"""A learner's work on groups as one row against one row an answer, on the tiny model, by prompt length and answers.

    python -m tests.bench.bench_shared_prefix [--repeats 3] [--quick] [--json]

Both layouts run in turn in one process on one thread, an update each; ratios are taken round by round. The floor is the
ratio of tokens computed, G · (P + R) / (P + G · R). Attention costs less than tokens say where answers are short, and every
kernel call costs the same however little it computes: at short prompts these decide.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from verl.protocol import DataProto

from data.box import Box
from data.prompts import focus_prompt, locus_prompt
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
from tests.bench.rows import Row, Spread, in_turn, ratio_of, table_of
from tests.rl.pictures import png

NAME = "learner update, groups in one row against a row an answer"
ANSWER_TOKENS, GROUPS = 32, 2
ANSWERS = (4, 8, 16)
SIDES = {64: (112, 56), 256: (420, 56), 1_000: (868, 56), 4_000: (868, 868, 868, 868)}  # prompt tokens, about: its images
QUICK = ((256, 8), (1_000, 8))


@dataclass(frozen=True)
class Measured:
    """Median seconds of both layouts, by how much the shared one is faster, and how much fewer tokens it computes."""

    prompt_tokens: int
    answers: int
    shared_s: float
    plain_s: float
    faster: Spread
    fewer_tokens: float


def make_batch(encoder: PromptEncoder, sides: Sequence[int], answers: int) -> DataProto:
    """Random scenes, answers and rewards."""
    rng = np.random.default_rng(sides[0])
    groups = []
    for number in range(GROUPS):
        images = tuple(png(rng, side, side) for side in sides)
        boxes = [Box(1, 1, 50, 50, image.frame) for image in images]
        prompt = locus_prompt() if len(images) == 2 else focus_prompt(tuple(boxes[:-1]))
        sample = Sample(f"{sides[0]}-{number}", "bench", images, prompt, boxes[-1], target_image=len(images) - 1)
        length = encoder.prompt_length(sample)
        tokens = [tuple(int(token) for token in rng.integers(300, 700, ANSWER_TOKENS)) for _ in range(answers)]
        rollouts = tuple(Rollout(sample.id, each, (0.0,) * ANSWER_TOKENS, "", "stop", 0, length) for each in tokens)
        groups.append(Group(sample, rollouts, tuple(Score(float(reward)) for reward in rng.random(answers))))
    batch = group_batch(groups)
    batch.batch["advantages"] = group_advantages(batch, AlgorithmConfig())
    return batch


@contextmanager
def tiny_learner() -> Iterator[Learner]:
    """On one thread, with pixel limits that leave the scenes their size."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        model = ModelConfig(path=folder, min_pixels=28 * 28, max_pixels=896 * 896)
        config = LearnerConfig(dtype="float32", activation_checkpointing=False)
        learner = Learner(model, config, OptimizerConfig(), PromptEncoder.of(model), Rendezvous(), temperature=1.0)
        yield learner
        learner.close()


def update_seconds(learner: Learner, batch: DataProto, layout: str) -> float:
    learner.config.layout = layout
    share = balance(batch, 1, 1 << 20, layout)[0]
    began = time.perf_counter()
    learner.update(share, GrpoObjective(AlgorithmConfig(kl_coefficient=0.0)), lr=0.0)
    return time.perf_counter() - began


def measure(learner: Learner, length: int, answers: int, repeats: int, warm_up: int = 1) -> Measured:
    batch = make_batch(learner.encoder, SIDES[length], answers)
    prompt = int(batch.batch["prompt_tokens"][0])
    variants = {layout: lambda layout=layout: update_seconds(learner, batch, layout) for layout in ("plain", "shared")}  # type: ignore[misc]
    taken = in_turn(variants, repeats, warm_up)
    plain, shared = (Spread.of(taken[layout]).median for layout in ("plain", "shared"))
    fewer = answers * (prompt + ANSWER_TOKENS) / (prompt + answers * ANSWER_TOKENS)
    return Measured(prompt, answers, shared, plain, ratio_of(taken["plain"], taken["shared"]), fewer)


def rows(quick: bool, repeats: int = 3) -> list[Row]:
    shapes = QUICK if quick else [(length, answers) for length in SIDES for answers in ANSWERS]
    found = []
    with tiny_learner() as learner:
        for length, answers in shapes:
            # Of 4,000 tokens one round: with 16 answers a plain update computes 129,000.
            long = length == 4_000
            result = measure(learner, length, answers, 1 if long else repeats, 0 if long else 1)
            how = f"{result.shared_s:.3f} s, {result.plain_s:.3f} s a row an answer"
            name = f"{result.prompt_tokens:,} prompt tokens, G={answers}"
            ratio = result.faster
            floor = f"{result.fewer_tokens:.2f} × fewer tokens"
            low, high = (None, None) if long else (ratio.low / result.fewer_tokens, ratio.high / result.fewer_tokens)
            row = Row(name, ratio.median, "× faster", floor, ratio.median / result.fewer_tokens, how, low, high)
            found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=NAME)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = rows(arguments.quick, arguments.repeats)
    if arguments.json:
        print(json.dumps([vars(row) for row in found]))
        return
    Console(width=150).print(table_of({NAME: found}, f"{GROUPS} groups of {ANSWER_TOKENS}-token answers, one thread"))


if __name__ == "__main__":
    main()

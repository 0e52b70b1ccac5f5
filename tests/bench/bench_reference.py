"""Logprobs of answers under a frozen policy: a group as one sequence against one row an answer, and against FLOPs.

    python -m tests.bench.bench_reference [--repeats 5] [--json]

The reference's work, and the learner's where a step needs old logprobs: a forward without gradients, on the demo's model in
float32, one thread; seconds are of the processor. Both layouts take turns in one process. Floors: the ratio of tokens
computed, G · (P + R) / (P + G · R); and the machine's GEMM rate, in the same process, for the FLOPs of the matrix products
and attention really computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from verl.protocol import DataProto

from rl.batch import balance
from rl.config import LearnerConfig, ModelConfig
from rl.engines.base import Rendezvous
from rl.learner import Learner
from rl.prompting import PromptEncoder
from rl.tiny_backbone import write
from tests.bench.bench_shared_prefix import ANSWER_TOKENS, SIDES, make_batch
from tests.bench.machine import gemm_flops_per_s
from tests.bench.rows import Row, in_turn, ratio_of, table_of

NAME = "Reference"
LENGTHS, ANSWERS = (256, 1_000), 8
BUDGET = 1 << 14


def seconds(learner: Learner, batch: DataProto, layout: str) -> float:
    learner.config.layout = layout
    share = balance(batch, 1, BUDGET, layout)[0]
    began = time.process_time()
    learner.logprobs(share)
    return time.process_time() - began


def flops(learner: Learner, batch: DataProto) -> int:
    """Of the shared layout's forward."""
    with FlopCounterMode(display=False) as counter:
        seconds(learner, batch, "shared")
    return int(counter.get_total_flops())


def rows(quick: bool, repeats: int | None = None) -> list[Row]:
    torch.set_num_threads(1)
    found, rate = [], gemm_flops_per_s()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        model = ModelConfig(path=folder, min_pixels=28 * 28, max_pixels=896 * 896)
        config = LearnerConfig(dtype="float32", activation_checkpointing=False)
        learner = Learner(model, config, None, PromptEncoder.of(model), Rendezvous(), temperature=1.0)
        for length in LENGTHS:
            found += _rows_of(learner, length, rate, repeats or (3 if quick else 5))
        learner.close()
    return found


def _rows_of(learner: Learner, length: int, rate: float, repeats: int) -> list[Row]:
    batch = make_batch(learner.encoder, SIDES[length], ANSWERS)
    prompt = int(batch.batch["prompt_tokens"][0])
    computed = flops(learner, batch)
    layouts = {layout: lambda layout=layout: seconds(learner, batch, layout) for layout in ("shared", "plain")}
    taken = in_turn(layouts, repeats)
    shared, fewer = (
        statistics.median(taken["shared"]),
        ANSWERS * (prompt + ANSWER_TOKENS) / (prompt + ANSWERS * ANSWER_TOKENS),
    )
    faster = ratio_of(taken["plain"], taken["shared"])
    speed = computed / shared
    name = f"prompt of {prompt}, G={ANSWERS}"
    return [
        Row(
            name=f"one sequence a group, {name}",
            value=shared,
            unit="s",
            floor=f"{fewer:.2f} × fewer tokens",
            ratio=faster.median / fewer,
            how=f"{faster.median:.2f} × faster than one row an answer; {repeats} of each, in turn",
            low=faster.low / fewer,
            high=faster.high / fewer,
        ),
        Row(
            name=f"arithmetic of it, {name}",
            value=speed / 1e9,
            unit="GFLOP/s",
            floor=f"GEMM {rate / 1e9:.0f} GFLOP/s",
            ratio=speed / rate,
            how=f"{computed / 1e9:.2f} GFLOP, layers of 96: decoding and processing images included",
            kept=False,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = rows(False, arguments.repeats)
    if arguments.json:
        print(json.dumps([asdict(row) for row in found]))
    else:
        Console(width=160).print(table_of({NAME: found}, "Reference logprobs, one thread"))


if __name__ == "__main__":
    main()

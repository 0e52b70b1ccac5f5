"""What the planner predicts against what is really held: shards of the 72B, activations and whole learners of small models.

    python -m tests.bench.bench_plan_memory [--json]

Shards are cut by FSDP2 on `meta` under process groups of 8 to 64 ranks. Peaks are those of live tensors, on CPU, decoders of
7B to 72B as fake tensors: memory inside kernels and an allocator's rounding are not in them. One thread, two minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from rl.plan.shapes import shape_of
from rl.plan.sharding import Fsdp
from tests.rl.plan.activation_case import CASES, Case, measured
from tests.rl.plan.fake_decoder import fake_decoder_peak
from tests.rl.plan.learner_total import measured_total, planned_items
from tests.rl.plan.test_sharding import big_config, fsdp_bytes

RANKS = ((8, 0), (8, 7), (16, 15), (64, 0), (64, 63))
DECODERS = (
    ("Qwen/Qwen2.5-VL-7B-Instruct", 5, 2900, 28),
    ("Qwen/Qwen2.5-VL-7B-Instruct", 1, 18432, 28),
    ("XiaomiMiMo/MiMo-VL-7B-RL", 5, 2900, 36),
    ("Qwen/Qwen3-VL-4B-Thinking", 5, 2900, 36),
    ("Qwen/Qwen2-VL-72B-Instruct", 1, 8192, 80),
)
WHOLE = Case(layers=4, hidden=512, heads=8, intermediate=2048, vocab=4000, text=300)
# Ranks, and DeepSpeed's stage; 0: FSDP2.
WHOLES = (
    (WHOLE, 1, 0),
    (WHOLE, 8, 0),
    (replace(WHOLE, dtype=torch.bfloat16), 8, 0),
    (replace(WHOLE, lora=8), 8, 0),
    (replace(WHOLE, checkpointed=False), 8, 0),
    (replace(WHOLE, prompts=3, layout="plain"), 4, 0),
    (WHOLE, 1, 2),
    (WHOLE, 8, 2),
    (WHOLE, 8, 3),
    (replace(WHOLE, dtype=torch.bfloat16), 8, 3),
    (replace(WHOLE, lora=8), 8, 3),
)


@dataclass(frozen=True)
class Row:
    """Bytes."""

    kind: str
    case: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def rows(folder: Path) -> Iterator[Row]:
    config = big_config(folder)
    shape = shape_of(config)
    for ranks, rank in RANKS:
        held, _, _ = fsdp_bytes(config, ranks, rank)
        case = f"Qwen2-VL-72B, FSDP2, rank {rank} of {ranks}"
        yield Row("shard", case, Fsdp(ranks, 2).shard(shape, rank).weights, held)
    for number, case in enumerate(CASES):
        peak, predicted = measured(case, folder / f"activations-{number}")
        yield Row("activations", str(case), predicted, peak)
    for model, row_count, length, layers in DECODERS:
        peak, predicted = fake_decoder_peak(model, row_count, length, layers)
        case = f"{model}, {layers} decoder blocks on fake tensors, {row_count} × {length}, checkpointed, bfloat16"
        yield Row("decoder", case, predicted, peak)
    for number, (case, ranks, stage) in enumerate(WHOLES):
        place = folder / f"learner-{number}"
        peak = measured_total(case, ranks, place, stage)
        predicted = sum(item.bytes for item in planned_items(case, ranks, place, stage))
        engine = f"ZeRO-{stage}" if stage else "FSDP2"
        yield Row("learner", f"{engine}, rank 0 of {ranks}: {case}", predicted, peak)


def told(row: Row) -> Row:
    """The row, printed: cases take seconds each."""
    sizes = f"{row.predicted / 1e6:12,.1f} {row.measured / 1e6:12,.1f} MB {100 * row.error:+6.1f} %"
    print(f"{row.kind:<12}{sizes}  {row.case}", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.json:
            print(json.dumps([asdict(row) | {"error": row.error} for row in rows(Path(folder))], indent=2))
            return 0
        print(f"{'':<12}{'predicted':>12} {'measured':>12}       error  case")
        found = [told(row) for row in rows(Path(folder))]
    worst = max(abs(row.error) for row in found if row.kind != "shard")
    exact = all(row.predicted == row.measured for row in found if row.kind == "shard")
    print(f"worst error of a peak {100 * worst:.1f} %; shards exact: {exact}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

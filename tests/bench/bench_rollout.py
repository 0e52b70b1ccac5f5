"""Rollout tokens a second inside the GRPO loop against the bare engines on the same requests, in the same actors.

    python -m tests.bench.bench_rollout [--steps 10] [--json]

recipes/locus/tiny.yaml with answers of a fixed length. After every step of the real loop the same prompts are sampled once
more by `LLM.generate` alone: in the same actors, all at once, with requests made before the clock starts (images decoded,
text rendered) and nothing done with the outputs. Caches are dropped in between on both sides. Seconds of the loop are its
own phase `rollout`, in which complete groups are judged too; those of the bare engines are of the slowest. There is no KL
term: where roles share the cores, a reference that begins early would be counted as sampling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import ray
from rich.console import Console

import rl.run
from data.sample import Sample
from rl.actors.rollout_stream import StreamingRolloutActor
from rl.actors.samples import fetch
from rl.config import load_recipe
from rl.demo import RECIPES
from rl.loop import GrpoLoop, StepReport
from rl.records import Sampling
from rl.train import run_recipe
from tests.bench.rows import Row, ratio_of, table_of
from tests.bench.trl.task import Shape, overrides, write_task

NAME = "Rollout"
SHAPE = Shape("16 prompts × 8 answers × 32 tokens", 16, 8, 32)
WARM_UP = 3


def prepare(actor: StreamingRolloutActor, references: Sequence[ray.ObjectRef], sampling: Sampling) -> None:
    """In the actor: make the requests, drop the caches."""
    sampler = actor.sampler
    requests = [sampler._request(place, sample, sampling) for place, sample in enumerate(fetch(references))]
    actor.bare = [request.prompt for request in requests], [request.params for request in requests]  # type: ignore[attr-defined]
    actor.thread.call(sampler._reset_caches)


def generate(actor: StreamingRolloutActor) -> tuple[int, float]:
    """In the actor: the engine alone; tokens, and seconds."""
    prompts, params = actor.bare  # type: ignore[attr-defined]
    began = time.perf_counter()
    outputs = actor.thread.call(actor.sampler._engine.generate, prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    actor.thread.call(actor.sampler._reset_caches)
    return sum(len(completion.token_ids) for output in outputs for completion in output.outputs), seconds


class BothLoop(GrpoLoop):
    """The loop, and after each of its steps the bare engines on the prompts of the step."""

    inside: ClassVar[list[float]] = []
    bare: ClassVar[list[float]] = []

    def step(self, step: int) -> StepReport:
        state = self.prompts.state_dict()
        report = super().step(step)
        answers = SHAPE.samples * SHAPE.answer_tokens
        self.inside.append(answers / report.metrics["time/rollout"])
        self.bare.append(self._bare(self._samples_of(state), step))
        return report

    def _samples_of(self, state: Any) -> list[Sample]:
        """What the step took: the stream is put back, and taken again."""
        after = self.prompts.state_dict()
        self.prompts.load_state_dict(state)
        samples = self.prompts.take(self.grpo.prompts_per_step)
        self.prompts.load_state_dict(after)
        return samples

    def _bare(self, samples: list[Sample], step: int) -> float:
        rollouts: Any = self.roles.rollouts
        actors, references = rollouts.group.actors, rollouts.shipper.references(samples)
        sampling = self._sampling_of(step, 0)
        shares = [references[rank :: len(actors)] for rank in range(len(actors))]
        ray.get([a.__ray_call__.remote(prepare, share, sampling) for a, share in zip(actors, shares, strict=True)])
        tokens, seconds = zip(*ray.get([actor.__ray_call__.remote(generate) for actor in actors]), strict=True)
        assert sum(tokens) == SHAPE.samples * SHAPE.answer_tokens, f"{sum(tokens)} tokens: an answer ended early"
        return sum(tokens) / max(seconds)


def rows(quick: bool, steps: int | None = None) -> list[Row]:
    count = WARM_UP + (steps or (8 if quick else 20))
    rl.run.GrpoLoop = BothLoop  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), SHAPE, count, seed=0)
        settings = [*overrides(Path(folder), SHAPE, count, seed=0), "algorithm.kl_coefficient=0"]
        if run_recipe(load_recipe(RECIPES / "tiny.yaml", settings)):
            raise SystemExit("the run failed; its message is above")
    inside, bare = BothLoop.inside[WARM_UP:], BothLoop.bare[WARM_UP:]
    ratio = ratio_of(inside, bare)
    return [
        Row(
            name=f"tokens/s in the loop, {SHAPE.name}",
            value=statistics.median(inside),
            unit="tokens/s",
            floor=f"bare engines {statistics.median(bare):,.0f} tokens/s",
            ratio=ratio.median,
            how=f"{len(inside)} steps, in turn; target 0.9",
            low=ratio.low,
            high=ratio.high,
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = rows(False, arguments.steps)
    if arguments.json:
        print(json.dumps([asdict(row) for row in found]))
    else:
        Console(width=160).print(table_of({NAME: found}, "Rollout inside the loop and bare"))


if __name__ == "__main__":
    main()

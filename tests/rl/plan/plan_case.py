"""A model, a workload and a machine of round numbers, small enough to work a plan out on paper."""

from __future__ import annotations

from functools import cache

from rl.config import Recipe, load_recipe
from rl.plan.gpus import Gpu
from rl.plan.hardware import Hardware
from rl.plan.memory import KvCache
from rl.plan.packing import Places
from rl.plan.roofline import Machine
from rl.plan.shapes import LanguageShape, ModelShape, ParameterBlock, ParameterShape, VisionShape
from rl.plan.situation import Situation
from rl.plan.workload import Workload

PERFECT = {"plan.compute_efficiency": 1.0, "plan.hbm_efficiency": 1.0, "plan.link_efficiency": 1.0}


def shape(trains: bool = True, adapter: int = 0) -> ModelShape:
    """Two decoder layers of 1,000 matrix parameters each, a head of 100 × 50, a tower of 3 × 200 and a projector of 400."""

    def block(kind: str, numel: int, count: int, linear: bool = True) -> ParameterBlock:
        parameters = [ParameterShape("weight", (numel,), trainable=trains, linear=linear)]
        if adapter and kind == "language":
            parameters.append(ParameterShape("lora", (adapter,), adapter=True, linear=True))
        return ParameterBlock(kind, kind, tuple(parameters), count, sharded_alone=kind in ("language", "vision"))

    return ModelShape(
        name="paper",
        model_type="none",
        blocks=(
            block("vision", 200, 3),
            block("projector", 400, 1),
            block("embedding", 5000, 1, linear=False),
            block("language", 1000, 2),
            block("head", 5000, 1),
        ),
        language=LanguageShape(hidden=100, layers=2, heads=5, kv_heads=5, head_dim=20, intermediate=0, vocab=50),
        vision=VisionShape(
            hidden=10, layers=3, heads=1, patch=14, merge=2, intermediate=0, gated=False, window=0, full_attention_layers=3
        ),
        tied=False,
    )


def workload(prompt: float = 30, answer: float = 10, images: float = 2, patches: float = 80) -> Workload:
    return Workload(
        prompt_tokens=prompt,
        prompt_tokens_max=int(prompt),
        images=images,
        patches=patches,
        patches_max=int(patches),
        answer_tokens=answer,
        answer_tokens_max=int(10 * answer),
        sources=(),
    )


def hardware(nodes: int = 1, gpus_per_node: int = 8) -> Hardware:
    """1 MFLOP/s, 100 kB/s of memory, links of 10 kB/s, PCIe of 2 kB/s, NICs of 5 kB/s a node."""
    gpu = Gpu("Paper", 1 << 30, 1e6, 1e5, 1e4, 2e3, 5e3, 1 << 34, 1.0, "test")
    return Hardware(gpu, nodes, gpus_per_node, 5e3, 1 << 34, 1.0, "test")


@cache
def recipe(**changes: object) -> Recipe:
    """LOCUS's 7B recipe cut to 8 prompts a step of 4 answers, two updates, two learner and two reference ranks."""
    small = {
        "grpo.prompts_per_step": 8,
        "grpo.prompts_per_update": 4,
        "grpo.num_generations": 4,
        "grpo.steps": 10,
        "learner.ranks": 2,
        "reference.ranks": 2,
        "rollout.actors": 2,
        "rollout.max_num_seqs": 8,
        "learner.tokens_per_micro_batch": 70,
        "validation.samples": 6,
        "validation.every": 5,
        "plan.longest_answer": 1.0,
    }
    keys = small | PERFECT | {key.replace("__", "."): value for key, value in changes.items()}
    words = [f"{key}={'null' if value is None else value}" for key, value in keys.items()]
    return load_recipe("recipes/locus/qwen2_5_vl_7b.yaml", words)


def situation(
    run: Recipe | None = None,
    of: ModelShape | None = None,
    lengths: Workload | None = None,
    stage: str = "grpo",
    machine: Hardware | None = None,
    where: Places | None = None,
    sequences: int = 16,
) -> Situation:
    run = run or recipe()
    return Situation(
        recipe=run,
        stage=stage,
        shape=of or shape(),
        workload=lengths or workload(),
        machine=Machine(machine or hardware(), run.plan),
        places=where or Places({"learner": (2,), "reference": (2,), "rollout": (2,)}, None),
        kv=KvCache(bytes_per_token=100, bytes=1 << 20, sequences=sequences, longest=4),
        validation_samples=6,
    )

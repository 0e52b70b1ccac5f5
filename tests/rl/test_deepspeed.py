"""The DeepSpeed engine: ZeRO-2 and ZeRO-3 compute what FSDP2 computes, on one rank and on two, and nothing changes that."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import multiprocessing as mp

import rl.engines.deepspeed_config
import rl.policy
from rl.batch import balance
from rl.config import load_recipe
from rl.config_checks import ConfigError
from rl.engines.base import Rendezvous
from rl.engines.process_group import blocks
from rl.engines.shards import Extent, ShardReader
from rl.learner import Learner
from rl.tiny_backbone import write
from tests.rl.learner_case import build_learner, case_batch, largest_gap, run_updates

LORA = 4
STAGES = (2, 3)
SPLIT = 3  # answer tokens scored at once: two ranks take different numbers of chunks
LEFT_WHOLE = 100  # under ZeRO-3 the tiny model's norms stay whole, everything else is cut
Metrics = list[dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """Two updates of one learner, and the second one again from a checkpoint in between."""

    metrics: Metrics
    weights: dict[str, Tensor]
    resumed_metrics: Metrics
    resumed_weights: dict[str, Tensor]


def full(learner: Learner) -> dict[str, Tensor]:
    return dict(learner.full_weights())


def outcome(model_dir: Path, checkpoint: Path, where: Rendezvous, **config: Any) -> Outcome:
    world, rank = where.world_size, where.rank
    learner = build_learner(model_dir, where, **config)
    batch = case_batch(learner.encoder)
    metrics = run_updates(learner, batch, world, rank, steps=1)
    checkpoint.mkdir(parents=True, exist_ok=True)
    learner.save(checkpoint)
    metrics += run_updates(learner, batch, world, rank, steps=1)
    weights = full(learner)
    learner.close()
    again = build_learner(model_dir, _elsewhere(where), **config)
    again.load(checkpoint)
    resumed_metrics = run_updates(again, batch, world, rank, steps=1)
    resumed_weights = full(again)
    again.close()
    return Outcome(metrics, weights, resumed_metrics, resumed_weights)


def _elsewhere(where: Rendezvous) -> Rendezvous:
    """A meeting place of its own for the next engine."""
    return Rendezvous(where.rank, where.world_size, 0, where.master_address, where.master_port + 1)


CASES: dict[str, dict[str, Any]] = {
    f"{engine}{'-lora' if lora else ''}": {"lora_rank": lora, "tokens_per_micro_batch": 400, **config}
    for lora in (0, LORA)
    for engine, config in {
        "fsdp": {"engine": "fsdp"},
        "zero2": {"engine": "deepspeed", "zero_stage": 2},
        "zero3": {"engine": "deepspeed", "zero_stage": 3},
    }.items()
}


ZERO_CASES = [name for name in CASES if not name.startswith("fsdp")]


def _rank(rank: int, port: int, model_dir: Path, root: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    rl.policy.LOGITS_CHUNK = SPLIT
    rl.engines.deepspeed_config.LEFT_WHOLE = LEFT_WHOLE
    outcomes = {}
    for number, (name, config) in enumerate(CASES.items()):
        where = Rendezvous(rank, 2, 0, "127.0.0.1", port + 2 * number)
        outcomes[name] = outcome(model_dir, root / name, where, **config)
    torch.save(outcomes, root / f"{rank}.pt")


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for first in range(20011, 60000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(sockets):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def two_ranks(tiny_model_dir: Path, root: Path) -> dict[str, Outcome]:
    """All cases on two ranks, one engine after another in the same two processes; as rank 1 saw them."""
    mp.spawn(_rank, args=(_free_ports(2 * len(CASES)), tiny_model_dir, root), nprocs=2)
    seen: dict[str, Outcome] = torch.load(root / "1.pt", weights_only=False)
    return seen


@pytest.fixture(scope="module")
def one_rank(tiny_model_dir: Path, root: Path) -> dict[str, Outcome]:
    return {name: outcome(tiny_model_dir, root / f"one-{name}", Rendezvous(), **config) for name, config in CASES.items()}


@pytest.fixture(autouse=True, scope="module")
def cut_small_parameters_too() -> Iterator[None]:
    gc.freeze()  # DeepSpeed collects garbage whenever it starts, among all that pytest and the libraries hold
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl.engines.deepspeed_config, "LEFT_WHOLE", LEFT_WHOLE)
        yield
    gc.unfreeze()


def of_fsdp(name: str) -> str:
    return "fsdp-lora" if name.endswith("lora") else "fsdp"


def assert_same(found: Metrics, expected: Metrics) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a["loss/policy"] == pytest.approx(b["loss/policy"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """A step moves a weight by 1e-3; where a gradient is nearly nought, its last digits decide the direction."""
    assert largest_gap(found, expected) <= 1e-4
    assert max(float((found[name] - expected[name]).abs().mean()) for name in expected) <= 1e-6


@pytest.mark.parametrize("name", ZERO_CASES)
def test_one_rank_equals_fsdp(one_rank: dict[str, Outcome], name: str) -> None:
    assert_same(one_rank[name].metrics, one_rank[of_fsdp(name)].metrics)
    assert_close(one_rank[name].weights, one_rank[of_fsdp(name)].weights)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one(two_ranks: dict[str, Outcome], one_rank: dict[str, Outcome], name: str) -> None:
    """Of FSDP2; the two ranks score their answers in different numbers of chunks."""
    assert_same(two_ranks[name].metrics, one_rank[of_fsdp(name)].metrics)
    assert_close(two_ranks[name].weights, one_rank[of_fsdp(name)].weights)


def test_the_two_ranks_score_different_numbers_of_chunks(tiny_model_dir: Path) -> None:
    learner = build_learner(tiny_model_dir)
    shares = balance(case_batch(learner.encoder), 2, 400, "shared")
    learner.close()
    masks = [[share.batch.batch["response_mask"][list(rows)] for rows in share.micro_batches] for share in shares]
    chunks = [[-(-int(mask.sum()) // SPLIT) for mask in of_rank] for of_rank in masks]
    assert chunks[0] != chunks[1]


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks"])
def test_resuming_at_the_same_size_continues_bit_for_bit(ranks: str, request: pytest.FixtureRequest) -> None:
    for case in request.getfixturevalue(ranks).values():
        assert case.resumed_metrics == case.metrics[1:]
        assert largest_gap(case.resumed_weights, case.weights) == 0.0


@pytest.mark.parametrize(
    ("saved_by", "read_by"),
    [
        ("zero2", "zero3"),
        ("zero3-lora", "zero2-lora"),
        pytest.param("zero3", "zero2", marks=pytest.mark.slow),
        pytest.param("zero2-lora", "zero3-lora", marks=pytest.mark.slow),
    ],
)
def test_shards_of_two_ranks_go_on_in_one_under_the_other_stage(
    tiny_model_dir: Path, root: Path, two_ranks: dict[str, Outcome], saved_by: str, read_by: str
) -> None:
    config = CASES[read_by]
    learner = build_learner(tiny_model_dir, **config)
    learner.load(root / saved_by)
    batch = case_batch(learner.encoder)
    share = balance(batch, 1, 400, "shared")[0]
    expected = learner.logprobs(share)
    saved = two_ranks[saved_by]
    assert_same(run_updates(learner, batch, 1, 0, steps=1), saved.metrics[1:])
    assert_close(full(learner), saved.weights)
    learner.close()

    reference = build_learner(tiny_model_dir, frozen=True, **config)
    before = reference.logprobs(share)
    reference.engine.load_policy(root / saved_by)
    reference.engine.offload()
    reference.engine.onload()
    assert torch.equal(reference.logprobs(share), expected)
    assert not torch.equal(before, expected)
    reference.close()


def test_a_lora_checkpoint_holds_the_adapter_alone(root: Path, two_ranks: dict[str, Outcome]) -> None:
    assert two_ranks
    for stage in STAGES:
        names = ShardReader(root / f"zero{stage}-lora").sizes
        assert names and all(".lora_" in name for name in names)


@pytest.mark.parametrize(
    ("config", "saved"),
    [(CASES["zero3"], "zero3-lora"), (CASES["zero3-lora"] | {"lora_rank": 8}, "zero3-lora"), (CASES["zero3"], "fsdp")],
    ids=["the base", "another rank", "FSDP2's"],
)
def test_shards_of_something_else_are_refused(
    tiny_model_dir: Path, root: Path, two_ranks: dict[str, Outcome], config: dict[str, Any], saved: str
) -> None:
    assert two_ranks
    learner = build_learner(tiny_model_dir, **config)
    with pytest.raises(ValueError, match=r"model\.path"):
        learner.load(root / saved)
    learner.close()


def test_fsdp_refuses_shards_of_deepspeed(tiny_model_dir: Path, root: Path, two_ranks: dict[str, Outcome]) -> None:
    assert two_ranks
    learner = build_learner(tiny_model_dir)
    with pytest.raises(ValueError, match=r"learner\.engine=deepspeed"):
        learner.engine.load_policy(root / "zero3")
    learner.close()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("zero2", {"offload": "optimizer"}),
        ("zero3", {"offload": "optimizer"}),
        ("zero3", {"offload": "all"}),
        ("zero3", {"activation_checkpointing": False}),
        pytest.param("zero3-lora", {"offload": "all"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_where_things_are_kept_changes_nothing(
    tiny_model_dir: Path, tmp_path: Path, one_rank: dict[str, Outcome], name: str, config: dict[str, Any]
) -> None:
    kept = outcome(tiny_model_dir, tmp_path, Rendezvous(), **{**CASES[name], **config})
    assert_same(kept.metrics, one_rank[name].metrics)
    assert_close(kept.weights, one_rank[name].weights)
    assert kept.resumed_metrics == kept.metrics[1:]


@pytest.mark.parametrize(
    "name",
    [
        "zero2",
        "zero3-lora",
        pytest.param("zero3", marks=pytest.mark.slow),
        pytest.param("zero2-lora", marks=pytest.mark.slow),
    ],
)
def test_offloading_between_steps_changes_nothing(tiny_model_dir: Path, one_rank: dict[str, Outcome], name: str) -> None:
    learner = build_learner(tiny_model_dir, **CASES[name])
    batch = case_batch(learner.encoder)
    metrics = run_updates(learner, batch, 1, 0, steps=1)
    for _ in range(2):
        learner.engine.offload()
        learner.engine.onload()
    metrics += run_updates(learner, batch, 1, 0, steps=1)
    assert metrics == one_rank[name].metrics
    assert largest_gap(full(learner), one_rank[name].weights) == 0.0
    learner.close()


@pytest.mark.slow
@pytest.mark.parametrize("config", [{"zero_stage": 2, "offload": "optimizer"}, {"offload": "optimizer"}, {"offload": "all"}])
def test_offloading_between_steps_what_is_not_on_the_host_anyway(tiny_model_dir: Path, config: dict[str, Any]) -> None:
    """Against the same learner without that."""
    metrics = []
    for moved in (False, True):
        learner = build_learner(tiny_model_dir, engine="deepspeed", **config)
        batch = case_batch(learner.encoder)
        run_updates(learner, batch, 1, 0, steps=1)
        if moved:
            learner.engine.offload()
            learner.engine.onload()
        metrics.append(run_updates(learner, batch, 1, 0, steps=1))
        learner.close()
    assert metrics[0] == metrics[1]


def test_a_family_that_uses_parameters_outside_of_modules_is_fsdps_too(tmp_path: Path) -> None:
    """LLaVA-OneVision: rows of image features end in a parameter of the model itself."""
    write(tmp_path, seed=0, architecture="llava_onevision")
    found = []
    for config in (CASES["fsdp"], CASES["zero3"]):
        learner = build_learner(tmp_path, **config)
        found.append((run_updates(learner, case_batch(learner.encoder), 1, 0), full(learner)))
        learner.close()
    assert_same(found[1][0], found[0][0])
    # Keys' biases have no gradient but rounding, which AdamW blows up; no loss reaches post_layernorm, which ZeRO decays.
    apart = ("k_proj.bias", "vision_tower.post_layernorm")
    weights = [{name: each[name] for name in each if not any(part in name for part in apart)} for _, each in found]
    assert_close(weights[1], weights[0])


def test_zero_3_never_gathers_more_than_a_block_for_the_samplers(tiny_model_dir: Path) -> None:
    learner = build_learner(tiny_model_dir, engine="deepspeed", zero_stage=3)
    policy = learner.engine.policy
    largest = max(sum(p.ds_numel for p in block.parameters()) for block in blocks(policy.base))
    largest = max(largest, *(parameter.ds_numel for parameter in policy.parameters()))
    whole = 0
    for _, tensor in learner.engine.named_tensors():
        whole += tensor.numel()
        assert sum(parameter.numel() for parameter in policy.parameters()) <= largest
    assert whole > 2 * largest
    assert sum(parameter.numel() for parameter in policy.parameters()) == 0
    names = [name for name, _ in learner.engine.named_tensors()]
    learner.close()
    fsdp = build_learner(tiny_model_dir)
    assert sorted(name for name, _ in fsdp.engine.named_tensors()) == sorted(names)
    fsdp.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_raises_and_changes_nothing(tiny_model_dir: Path, stage: int) -> None:
    learner = build_learner(tiny_model_dir, engine="deepspeed", zero_stage=stage)
    batch = case_batch(learner.encoder)
    before = full(learner)
    logprobs = learner._forward(batch, learner._inputs(batch, learner._prompts(batch)))[0]
    learner.engine.backward(logprobs.sum() * float("inf"))
    with pytest.raises(FloatingPointError, match="not finite"):
        learner.engine.step(1e-3)
    assert largest_gap(full(learner), before) == 0.0
    learner.close()


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_bfloat16_computes_near_float32_on_masters_in_float32(
    tiny_model_dir: Path, tmp_path: Path, one_rank: dict[str, Outcome], stage: int
) -> None:
    exact, kept = one_rank[f"zero{stage}"], tmp_path / "kept"
    rounded = outcome(tiny_model_dir, kept, Rendezvous(), **CASES[f"zero{stage}"], dtype="bfloat16")
    for a, b in zip(rounded.metrics, exact.metrics, strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.05)
    assert all(tensor.dtype == torch.bfloat16 for tensor in rounded.weights.values())
    assert rounded.resumed_metrics == rounded.metrics[1:]
    reader = ShardReader(kept)
    name, numel = next(iter(reader.sizes.items()))
    master = reader.read("master", Extent(name, 0, numel, numel))
    assert master.dtype == torch.float32
    assert not torch.equal(master, master.bfloat16().float())


def test_qlora_under_zero_2_equals_fsdp(tiny_model_dir: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"lora_rank": LORA, "quantization": "nf4"}
    fsdp = outcome(tiny_model_dir, tmp_path / "fsdp", Rendezvous(), **shared)
    zero = outcome(tiny_model_dir, tmp_path / "zero", Rendezvous(), **shared, engine="deepspeed", zero_stage=2)
    assert_same(zero.metrics, fsdp.metrics)
    assert_close(zero.weights, fsdp.weights)
    assert zero.resumed_metrics == zero.metrics[1:]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["learner.zero_stage=1"], r"learner\.zero_stage"),
        (["learner.zero_stage=2", "learner.offload=all"], r"learner\.offload=all"),
        (["model.quantization=nf4", "model.lora.rank=4"], r"model\.quantization=nf4.*zero_stage=2"),
    ],
    ids=str,
)
def test_what_deepspeed_cannot_do_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_recipe("recipes/locus/tiny.yaml", ["learner.engine=deepspeed", *overrides])

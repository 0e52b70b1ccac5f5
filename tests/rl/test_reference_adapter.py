"""The reference on the learner's base: the same numbers as a reference of its own, and no trace in what is trained."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import multiprocessing as mp
from verl.protocol import DataProto

from rl.batch import balance
from rl.config import Recipe, load_recipe
from rl.config_checks import ConfigError, check_recipe
from rl.engines.base import Rendezvous
from rl.learner import Learner
from tests.rl.learner_case import build_learner, case_batch, run_updates

BUDGET = 400
SHIPPED = Path(__file__).parents[2] / "recipes" / "locus" / "tiny.yaml"


def logprobs_of(learner: Learner, batch: DataProto, where: Rendezvous, reference: bool = False) -> Tensor:
    share = balance(batch, where.world_size, BUDGET, learner.config.layout)[where.rank]
    return (learner.reference_logprobs if reference else learner.logprobs)(share)


def adapter_of(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.adapter_weights()}


def chain(model_dir: Path, folder: Path, where: Rendezvous, config: dict[str, Any]) -> dict[str, Any]:
    """A stage before trains and saves; the next one begins there, trains, is saved and resumed. What each computes."""
    config = {"tokens_per_micro_batch": BUDGET, **config}
    before = build_learner(model_dir, where, lora_rank=4, **config)
    batch = case_batch(before.encoder, groups=4)
    fresh = logprobs_of(before, batch, where)
    before.keep_reference()
    run_updates(before, batch, where.world_size, where.rank, steps=1)
    seen = {"fresh": (fresh, logprobs_of(before, batch, where, reference=True))}
    before.save(_made(folder / "before"))
    alone = build_learner(model_dir, where, lora_rank=4, frozen=True, **config)
    alone.engine.load_policy(folder / "before")
    expected = logprobs_of(alone, batch, where)

    stages = []
    for keeps in (False, True):
        stage = build_learner(model_dir, where, lora_rank=4, **config)
        stage.engine.load_policy(folder / "before")
        if keeps:
            stage.keep_reference()
            seen["start"] = (expected, logprobs_of(stage, batch, where, reference=True))
        metrics = run_updates(stage, batch, where.world_size, where.rank, steps=2)
        if keeps:
            seen["trained"] = (expected, logprobs_of(stage, batch, where, reference=True))
        stages.append({"metrics": metrics, "logprobs": logprobs_of(stage, batch, where), "adapter": adapter_of(stage)})
    stage.save(_made(folder / "saved"))

    resumed = build_learner(model_dir, where, lora_rank=4, **config)
    resumed.engine.load_policy(folder / "before")
    resumed.keep_reference()
    resumed.load(folder / "saved")
    seen["resumed"] = (expected, logprobs_of(resumed, batch, where, reference=True))
    seen["resumed policy"] = (stages[1]["logprobs"], logprobs_of(resumed, batch, where))
    for learner in (resumed, stage, alone, before):
        learner.close()
    return {"seen": seen, "without": stages[0], "with": stages[1]}


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    return folder


def _rank(rank: int, world: int, port: int, model_dir: Path, folder: Path, config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    where = Rendezvous(rank, world, 0, "127.0.0.1", port)
    torch.save(chain(model_dir, folder, where, config), folder / f"rank-{rank}.pt")


def on_ranks(world: int, model_dir: Path, folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(world, port, model_dir, folder, config), nprocs=world)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(world)]


def check(found: dict[str, Any]) -> None:
    """To the last bit, in float32 and in bfloat16."""
    for name, (expected, computed) in found["seen"].items():
        assert torch.equal(expected, computed), name
    start = found["seen"]["start"][0]
    assert not torch.equal(start, found["seen"]["fresh"][0])  # the stage before did learn something
    assert not torch.equal(start, found["with"]["logprobs"])  # and so did this one
    # Computing the reference left nothing behind in what is trained.
    assert found["with"]["metrics"] == found["without"]["metrics"]
    assert found["with"]["adapter"].keys() == found["without"]["adapter"].keys()
    assert all(
        torch.equal(found["with"]["adapter"][name], found["without"]["adapter"][name]) for name in found["with"]["adapter"]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_equals_a_reference_of_its_own_over_stages_and_resume(dtype: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    check(chain(tiny_model_dir, tmp_path, Rendezvous(), {"dtype": dtype}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        {"engine": "fsdp"},
        {"engine": "fsdp", "offload": "all"},
        {"engine": "deepspeed", "zero_stage": 3},
        {"engine": "deepspeed", "zero_stage": 2},
        {"engine": "deepspeed", "zero_stage": 3, "dtype": "bfloat16"},
        {"engine": "deepspeed", "zero_stage": 2, "dtype": "bfloat16"},
    ],
    ids=lambda engine: "-".join(map(str, engine.values())),
)
def test_it_does_on_two_ranks_of_every_engine(engine: dict[str, Any], tiny_model_dir: Path, tmp_path: Path) -> None:
    for found in on_ranks(2, tiny_model_dir, tmp_path, engine):
        check(found)


def test_without_an_adapter_there_is_nothing_to_compute_it_from() -> None:
    with pytest.raises(ConfigError, match=r"`reference.placement=learner`.*without LoRA.*model.lora.rank"):
        load_recipe(SHIPPED, ["reference.placement=learner"])
    recipe: Recipe = load_recipe(SHIPPED, ["reference.placement=learner", "model.lora.rank=4"])
    recipe.reference.placement = "nowhere"
    with pytest.raises(ConfigError, match=r"`reference.placement` is `nowhere`"):
        check_recipe(recipe)

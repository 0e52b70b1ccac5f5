"""`cluster.placement=colocated` and `reference.placement=learner` in the real program: as separate roles, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.runs import run
from tests.integration.test_train import LORA, lasting, weights_of

CHAIN = (*LORA, "stages=[sft,grpo]", "sft.steps=2", "sft.batch_size=4", "sft.optimizer.lr=1e-2", "grpo.steps=2")


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [("grpo.steps=2", "checkpoint.every=1"), CHAIN], ids=["full", "lora"])
def test_a_colocated_run_equals_one_on_separate_gpus(recipe: Path, chosen: tuple[str, ...]) -> None:
    """Two samplers, two learner ranks, a reference; full weights are given up at every checkpoint, the LoRA base is kept."""
    apart = run(recipe, *chosen)
    assert apart.status == 0, apart.err
    together = run(recipe, *chosen, "cluster.placement=colocated")
    assert together.status == 0, together.err
    assert lasting(together) == lasting(apart)
    assert apart.run_dir is not None and together.run_dir is not None
    assert weights_of(together.run_dir) == weights_of(apart.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["disaggregated", "colocated"])
def test_the_reference_on_the_learner_equals_one_of_its_own(placement: str, recipe: Path) -> None:
    """SFT's policy anchors GRPO under LoRA: the same KL at every step, and one actor less."""
    where = ("reference.ranks=2", f"cluster.placement={placement}")
    own = run(recipe, *CHAIN, *where)
    assert own.status == 0, own.err
    shared = run(recipe, *CHAIN, *where, "reference.placement=learner")
    assert shared.status == 0, shared.err
    assert lasting(shared) == lasting(own)
    assert own.run_dir is not None and shared.run_dir is not None
    assert weights_of(shared.run_dir) == weights_of(own.run_dir)
    kl = [metrics["loss/kl"] for _, metrics in lasting(shared) if "loss/kl" in metrics]
    assert kl[0] == pytest.approx(0.0, abs=1e-6) and kl[-1] > 0
    memory = [name for line in shared.metrics() for name in line["metrics"] if name.startswith("memory/")]
    assert memory and not any("reference" in name for name in memory)

"""Times of a step: worked out by hand for one small model, and what must hold for any: more machines are never slower.

The model of plan_case.py on paper, a group of a 30-token prompt with 80 patches in 2 images and 4 answers of 10 tokens, as
one row of 30 + 4 × 10 = 70 tokens:

    decoder   2 × 2,000 × 70 = 280,000, attention 4 × 100 × 2 layers × (30² / 2 + 40 × 70) = 2,600,000
    tower     2 × (600 × 80 + 400 × 20) = 112,000, attention 80 × 3 layers × 4 × 10 × 40 = 384,000
    head      2 × 100 × 50 × 40 = 400,000                                  forward 3,776,000 in all
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from rl.plan.operations import Group, decode_operations, group_operations, prefill_operations
from rl.plan.packing import Places
from rl.plan.phases import overlapped, phases_of, step_seconds
from rl.plan.roofline import Phase
from rl.plan.sampling import decoding_of
from rl.plan.situation import Situation
from tests.rl.plan.plan_case import hardware, recipe, shape, situation, workload

FORWARD = 3_776_000


def timed(at: Situation) -> dict[str, Phase]:
    return {phase.name: phase for phase in phases_of(at)}


def group(layout: str = "shared", answers: int = 4) -> Group:
    return Group.of(workload(), answers, 10, layout)


def test_a_forward_is_the_sum_worked_out_above() -> None:
    assert group_operations(shape(), group()).forward == FORWARD


def test_a_checkpointed_update_is_four_forwards() -> None:
    """Backward twice the forward, everything computed twice: the head's second forward is always there."""
    operations = group_operations(shape(), group())
    assert operations.update(checkpointing=True) == 4 * FORWARD
    assert operations.update(checkpointing=False) == 3 * FORWARD + 400_000


def test_plain_rows_pay_the_prompt_and_its_images_once_an_answer() -> None:
    """4 rows of 40 tokens, causal: decoder 640,000 + 800 × 4 × 40² / 2; the tower four times; the head the same."""
    plain = group_operations(shape(), group("plain")).forward
    assert plain == 640_000 + 800 * 3_200 + 4 * 496_000 + 400_000


def test_an_adapter_needs_no_gradients_of_the_matrices_it_stands_on() -> None:
    """Decoder: input gradients of 2 × (1,000 + 10), own gradients of 2 × 10 alone; nothing in the tower, which learns
    nothing; the head's input gradient and its second forward."""
    operations = group_operations(shape(trains=False, adapter=10), group())
    matrices, adapters, attention = 2 * 2_020 * 70, 2 * 20 * 70, 2_600_000
    assert operations.forward == matrices + attention + 496_000 + 400_000
    assert operations.backward == matrices + adapters + 2 * attention + 2 * 400_000
    assert operations.recomputed == matrices + attention


def test_windows_bound_the_towers_attention_but_in_its_full_layers() -> None:
    """Windows of 28 pixels hold 4 patches: 80 × 4 × 10 × (1 layer × 40 + 2 layers × 4)."""
    whole = shape()
    windowed = replace(whole, vision=replace(whole.vision, window=28, full_attention_layers=1))
    spared = group_operations(whole, group()).forward - group_operations(windowed, group()).forward
    assert spared == 384_000 - 80 * 40 * (40 + 2 * 4)


def test_a_prompt_is_prefilled_once_and_a_token_sees_its_context() -> None:
    assert prefill_operations(shape(), group()) == 120_000 + 800 * 30**2 / 2 + 496_000
    assert decode_operations(shape(), 35) == 2 * 2_000 + 2 * 5_000 + 800 * 35


def test_every_phase_of_a_step_by_hand() -> None:
    """8 prompts on 2 samplers, 2 learner and 2 reference ranks; machine and efficiencies of plan_case.py."""
    phases = timed(situation())
    assert phases["prefill"].seconds == pytest.approx(4 * 976_000 / 1e6)
    # 16 answers, 8 at once: 20 token steps; weights 14,000 bytes, 8 × 35 tokens × 100 bytes of keys; 3 ms of its own.
    assert phases["decode"].seconds == pytest.approx(20 * ((14_000 + 28_000) / 1e5 + 0.003))
    assert phases["decode"].bound == "HBM"
    assert phases["old logprobs"].seconds == pytest.approx(4 * FORWARD / 1e6)
    assert phases["reference"].seconds == phases["reference"].hidden == pytest.approx(4 * FORWARD / 1e6)
    # Two updates of 2 groups a rank.
    assert phases["update"].seconds == pytest.approx(2 * 2 * 4 * FORWARD / 1e6)
    assert phases["update"].bound == "compute"
    # 4 micro-batches: 13,000 parameters gathered twice in 2 bytes, reduced in 4; half of it arrives; 6 units start late.
    wire = 4 * (2 * (13_000 * 2 / 2 / 1e4 + 6 * 15e-6) + 13_000 * 4 / 2 / 1e4)
    assert phases["collectives"].seconds == phases["collectives"].hidden == pytest.approx(wire)
    assert phases["optimizer"].seconds == pytest.approx(2 * 28 * 6_500 / 1e5)
    # Three greedy passes, two sampled ones, 3 prompts a sampler, in 10 steps.
    once = 3 * 976_000 / 1e6 + 10 * ((14_000 + 3 * 3_500) / 1e5 + 0.003)
    assert phases["validation"].seconds == pytest.approx(5 * once / 10)
    assert step_seconds(list(phases.values())) == pytest.approx(
        sum(phase.seconds for phase in phases.values()) - phases["reference"].seconds - phases["collectives"].seconds
    )


def test_a_tail_of_long_answers_runs_alone() -> None:
    at = situation(recipe(plan__longest_answer=3.0))
    assert decoding_of(at, 16).tail == 20
    cut = situation(recipe(plan__longest_answer=30.0))
    assert decoding_of(cut, 16).tail == 90  # the largest answer allowed is 100 tokens


def test_a_small_cache_means_more_token_steps() -> None:
    assert decoding_of(situation(sequences=4), 16).steps == 40
    assert decoding_of(situation(sequences=64), 16).steps == 20  # rollout.max_num_seqs is 8


def test_sft_learns_and_samples_only_to_validate() -> None:
    phases = timed(situation(recipe(stages="[sft]", sft__steps=10, sft__batch_size=4), stage="sft"))
    assert list(phases) == ["update", "collectives", "optimizer", "validation", "checkpoint"]
    one = group_operations(shape(), group(answers=1))
    assert phases["update"].seconds == pytest.approx(2 * one.update(checkpointing=True) / 1e6)


def test_an_exchange_that_outlasts_the_computing_shows() -> None:
    slow = situation(machine=replace(hardware(nodes=2), nic_bytes_per_s=20.0), where=Places({"learner": (1, 1)}, None))
    phases = timed(slow)
    assert phases["collectives"].bound == "NIC"
    assert phases["collectives"].exposed == pytest.approx(phases["collectives"].seconds - phases["update"].seconds)


def test_zero_2_gathers_once_an_update_and_not_once_a_micro_batch() -> None:
    zero3 = timed(situation(recipe(learner__engine="deepspeed", learner__zero_stage=3)))["collectives"].seconds
    zero2 = timed(situation(recipe(learner__engine="deepspeed", learner__zero_stage=2)))["collectives"].seconds
    gather = 13_000 * 2 / 2 / 1e4 + 6 * 15e-6
    assert zero3 - zero2 == pytest.approx((4 * 2 - 2) * gather)


def test_offloaded_state_is_stepped_by_the_host() -> None:
    phases = timed(situation(recipe(learner__offload="all")))
    assert phases["optimizer"].bound == "host"
    assert phases["optimizer"].seconds == pytest.approx(2 * 2 * 28 * 6_500 / 100e9)


def test_a_quantized_base_is_whole_on_every_rank_and_only_its_adapter_travels() -> None:
    quantized = recipe(model__quantization="nf4", model__lora__rank=8)
    at = situation(quantized, of=shape(trains=False, adapter=10))
    wire = 4 * (2 * (20 * 2 / 2 / 1e4 + 6 * 15e-6) + 20 * 4 / 2 / 1e4)
    assert timed(at)["collectives"].seconds == pytest.approx(wire)


def test_ranks_that_share_a_sequence_share_its_decoder_but_not_its_tower() -> None:
    """Two ranks, all 4 groups on both: a forward each of 496,000 + (280,000 + 2,600,000 + 400,000) / 2."""
    phases = timed(situation(recipe(learner__sequence_parallel=2)))
    assert phases["old logprobs"].seconds == pytest.approx(8 * (496_000 + 3_280_000 / 2) / 1e6)
    # 560 tokens: 280 on each rank; q, k, v and output of 5 heads of 20 in 2 bytes, two layers, three passes, half leaves.
    assert phases["sequence exchange"].seconds == pytest.approx(3 * 280 * (4 * 5 * 20 * 2) * 2 / 2 / 1e4)


def test_a_reference_on_ranks_of_its_own_scores_whole_sequences() -> None:
    """Three ranks, eight prompts, whatever the learner's ranks share."""
    alone, shared = (
        timed(situation(recipe(learner__sequence_parallel=n, learner__ranks=4, reference__ranks=3))) for n in (1, 4)
    )
    assert alone["reference"].seconds == shared["reference"].seconds == pytest.approx(3 * FORWARD / 1e6)


def test_weights_are_handed_over_by_transport() -> None:
    """26,000 bytes gathered by two ranks at 10 kB/s; then over the link, or down and up PCIe at 2 kB/s and over TCP.

    What stays on GPUs is copied down PCIe on either side all the same, and hashed at 30 GB/s.
    """
    gathered = 26_000 / 2 / 1e4
    assert timed(situation())["sync"].seconds == pytest.approx(gathered + 26_000 / 1e4 + 2 * (26_000 / 2e3 + 26_000 / 30e9))
    through_host = timed(situation(recipe(sync__transport="gloo")))["sync"].seconds
    assert through_host == pytest.approx(gathered + 2 * 26_000 / 2e3 + 26_000 / 2.5e9)
    adapter = situation(recipe(model__lora__rank=8), of=shape(trains=False, adapter=10))
    assert timed(adapter)["sync"].seconds == pytest.approx(40 / 2 / 1e4 + 2 * 40 / 2e3)


def test_colocated_roles_take_turns_over_pcie() -> None:
    """13,000 parameters and two moments over 2 ranks, a reference over 2, out and in; nothing runs beside anything."""
    together = {"cluster__placement": "colocated", "rollout__actors": 2}
    phases = timed(situation(recipe(**together), where=Places({"learner+reference+rollout": (2,)}, None)))
    assert phases["sleep, wake"].seconds == pytest.approx(2 * (4 * 3 * 6_500 + 4 * 6_500) / 2e3)
    assert phases["reference"].hidden == 0
    assert phases["sync"].seconds == pytest.approx(26_000 / 2 / 1e4 + 2 * 26_000 / 1e5 + 2 * (26_000 / 2e3 + 26_000 / 30e9))


def test_asynchronous_rollouts_hide_the_shorter_side() -> None:
    longer = Phase("update", 10.0, "compute", "")
    sampled = (Phase("prefill", 1.0, "compute", ""), Phase("decode", 5.0, "HBM", ""))
    alone = Phase("sync", 0.5, "link", "")
    assert step_seconds(overlapped((*sampled, longer, alone))) == pytest.approx(10.5)
    assert step_seconds(overlapped((*sampled, replace(longer, seconds=2.0), alone))) == pytest.approx(6.5)


def test_asynchronous_is_never_slower_than_synchronous() -> None:
    synchronous, asynchronous = (
        phases_of(situation(recipe(grpo__max_staleness=k, algorithm__rollout_is="token"))) for k in (0, 1)
    )
    assert step_seconds(asynchronous) < step_seconds(synchronous)


def test_more_learner_ranks_never_slow_an_update() -> None:
    for before, after in pairwise(
        timed(situation(recipe(learner__ranks=ranks, grpo__prompts_per_update=8), where=Places({"learner": (ranks,)}, None)))
        for ranks in (1, 2, 4, 8)
    ):
        assert after["update"].seconds <= before["update"].seconds
        assert after["optimizer"].seconds <= before["optimizer"].seconds


def test_more_samplers_never_slow_a_rollout() -> None:
    for before, after in pairwise(timed(situation(recipe(rollout__actors=actors))) for actors in (1, 2, 3, 8)):
        for name in ("prefill", "decode", "validation"):
            assert after[name].seconds <= before[name].seconds


def test_longer_prompts_and_answers_are_never_cheaper() -> None:
    for name, longer in (("prompt", [20, 30, 60]), ("answer", [5, 10, 20]), ("patches", [40, 80, 160])):
        for before, after in pairwise(timed(situation(lengths=workload(**{name: size}))) for size in longer):
            for phase, cost in after.items():
                assert cost.seconds >= before[phase].seconds, (name, phase)


def test_twice_the_efficiency_halves_what_it_bounds() -> None:
    half = recipe(plan__compute_efficiency=0.5)
    assert timed(situation(half))["update"].seconds == pytest.approx(2 * timed(situation())["update"].seconds)

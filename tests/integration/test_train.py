"""`python -m rl.train` on real Ray, real vLLM and real learners: what it leaves, how it resumes, how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from data.store import SampleStore
from rl.trace import ENGINE, TORCH, Event
from rl.trace_file import read_trace
from tests.integration.runs import Finished, run, run_until, wait_until_clean

TIMES = ("time/", "throughput/", "memory/")


def lasting(done: Finished) -> list[tuple[int, dict[str, float]]]:
    """What must be the same again: every metric that is not a time or a size in memory."""
    return [
        (line["step"], {name: value for name, value in line["metrics"].items() if not name.startswith(TIMES)})
        for line in done.metrics()
    ]


def weights_of(run_dir: Path) -> bytes:
    return (run_dir / "export" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, data_dir: Path) -> Finished:
    """An uninterrupted run: two rollout actors, a reference, two FSDP2 ranks, four steps, of which two are profiled.

    What is compared with it was not profiled: a recording changes nothing.
    """
    from tests.integration.runs import write_recipe

    root = tmp_path_factory.mktemp("straight")
    since = time.time()
    done = run(write_recipe(root / "recipe.yaml", model_dir, data_dir, root / "runs"), "profile=2,4", "profile.torch=true")
    assert done.status == 0, done.err
    assert wait_until_clean(since) == []
    return done


def test_sampler_and_learner_agree_and_every_sampler_holds_the_last_version(straight: Finished) -> None:
    steps = [line["metrics"] for line in straight.metrics() if "mismatch/max" in line["metrics"]]
    assert len(steps) == 4
    assert max(step["mismatch/max"] for step in steps) <= 1e-4
    assert all(step["policy/ratio_max"] == 1.0 for step in steps)
    assert steps[0]["loss/kl"] == pytest.approx(0.0, abs=1e-6)
    assert steps[-1]["loss/kl"] > steps[0]["loss/kl"]


def test_it_leaves_a_summary_a_report_and_a_model_that_loads(straight: Finished) -> None:
    assert straight.run_dir is not None
    summary = json.loads((straight.run_dir / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["mismatch_max"] <= 1e-4
    assert {"rollout-0", "rollout-1", "learner-0", "learner-1", "reference-0"} <= set(summary["peak_memory_mib"])
    assert "http" not in (straight.run_dir / "report.html").read_text().replace("http://www.w3.org", "")
    model = AutoModelForImageTextToText.from_pretrained(straight.run_dir / "export")
    assert model.config.model_type == "qwen2_5_vl"


def test_the_trace_has_everybody_inside_the_drivers_phases(straight: Finished) -> None:
    """Driver, actors, engines and torch on one time axis: who does something does it while the driver waits for it."""
    assert straight.run_dir is not None
    lanes = {lane.name: lane.events for lane in read_trace(straight.run_dir / "trace.json")}
    roles = ["rollout-0", "rollout-1", "reward-0", "learner-0", "learner-1", "reference-0"]
    assert list(lanes) == ["driver", *roles]
    assert [event.args["number"] for event in lanes["driver"] if event.name == "step"] == [2, 4]
    phase = {name: [event for event in lanes["driver"] if event.name == name] for name in ("rollout", "update", "publish")}
    for rank in ("learner-0", "learner-1"):
        for name in ("update", "forward", "backward", "optimizer"):
            assert_inside([event for event in lanes[rank] if event.name == name], phase["update"])
        assert any(event.kind == TORCH and event.name == "aten::mm" for event in lanes[rank])
        assert_inside([event for event in lanes[rank] if event.name == "publish"], phase["publish"])
    steps = [event for name in ("rollout-0", "rollout-1") for event in lanes[name] if event.kind == ENGINE]
    assert_inside(steps, phase["rollout"])
    assert {event.name for event in steps} == {"prefill", "decode"}
    assert sum(event.args["prompts"] for event in steps) == 2 * 4 * 3  # steps, prompts, answers: each is a request to vLLM
    assert all(event.args["answers"] <= 4 * 3 for event in steps)
    page = (straight.run_dir / "report.html").read_text()
    assert "One step, on one time axis" in page and "Step 4 took" in page


def assert_inside(events: list[Event], phases: list[Event]) -> None:
    """Every event lies in one of the phases, and every phase has some."""
    assert events
    found = [
        [
            phase
            for phase in phases
            if phase.began <= event.began and event.began + event.lasted <= phase.began + phase.lasted
        ]
        for event in events
    ]
    assert all(found) and {phase.began for some in found for phase in some} == {phase.began for phase in phases}


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(recipe: Path, straight: Finished) -> None:
    killed = run_until(recipe, '"step": 3', signal.SIGKILL)
    assert killed.run_dir is not None and straight.run_dir is not None
    resumed = run(recipe, f"resume={killed.run_dir}")
    assert resumed.status == 0, resumed.err
    assert lasting(resumed) == lasting(straight)
    assert weights_of(killed.run_dir) == weights_of(straight.run_dir)


def test_ctrl_c_ends_everything_and_says_how_to_go_on(recipe: Path) -> None:
    since = time.time()
    stopped = run_until(recipe, '"step": 2', signal.SIGINT, "grpo.steps=400")
    assert stopped.status == 130
    assert f"resume={stopped.run_dir}" in stopped.err
    assert "Traceback" not in stopped.err
    assert wait_until_clean(since) == []


def test_failing_rewards_are_counted_and_their_answers_left_out(recipe: Path) -> None:
    done = run(recipe, "reward.name=tests.integration.user_rewards:sometimes_broken", "grpo.steps=1")
    assert done.status == 0, done.err
    (step,) = [line for line in done.metrics() if line["step"] == 1]
    assert step["metrics"]["reward/failures"] > 0
    assert any("divides by zero" in reason for reason in step["failures"])


def test_a_reward_that_always_fails_ends_the_run_with_its_reason(recipe: Path) -> None:
    done = run(recipe, "reward.name=tests.integration.user_rewards:always_broken", "grpo.steps=1")
    assert done.status == 1
    assert "no_such_field" in done.err
    assert "Traceback" not in done.err


def test_a_corrupt_image_costs_its_own_answers_only(recipe: Path, tmp_path: Path, data_dir: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(data_dir.parent, damaged)
    torn = SampleStore(damaged / "locus", split="train")[0].images[0].path
    assert torn is not None
    Path(torn).write_bytes(Path(torn).read_bytes()[:400])
    data = damaged / "locus"
    done = run(recipe, f"data.train={data}", "grpo.prompts_per_step=40", "grpo.prompts_per_update=40", "grpo.steps=1")
    assert done.status == 0, done.err
    (step,) = [line for line in done.metrics() if line["step"] == 1]
    assert step["metrics"]["rollout/failures"] >= 3
    assert any("cannot be decoded" in reason for reason in step["failures"])


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(recipe: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=28m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        done = run(recipe, f"runs={small}", "checkpoint.every=1", "checkpoint.keep=9")
        assert done.status == 1
        assert "could not be written" in done.err and "MiB are free" in done.err
        assert "Traceback" not in done.err
        (run_dir,) = (small / "tiny").iterdir()
        kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
        assert kept and all((run_dir / "checkpoints" / name / "state.json").exists() for name in kept)
    finally:
        subprocess.run(["umount", str(small)], check=True)


LORA = ("model.lora.rank=4", "model.lora.alpha=8")


@pytest.mark.slow
def test_a_quantized_base_is_what_the_samplers_sample_from(recipe: Path) -> None:
    """The adapter travels every step, its dequantized base once: sampler and learner agree as without quantization."""
    done = run(recipe, *LORA, "model.quantization=nf4", "grpo.steps=2")
    assert done.status == 0, done.err
    steps = [line["metrics"] for line in done.metrics() if "mismatch/max" in line["metrics"]]
    assert len(steps) == 2
    assert max(step["mismatch/max"] for step in steps) <= 1e-4


def test_a_chain_in_one_run_equals_its_stages_run_one_by_one(recipe: Path) -> None:
    """Under LoRA: GRPO begins with SFT's policy and is held to that policy, not to the bare base; adapters alone travel."""
    sft = ("sft.steps=2", "sft.batch_size=4", "sft.optimizer.lr=1e-2")
    chain = run(recipe, *LORA, *sft, "stages=[sft,grpo]", "grpo.steps=2")
    assert chain.status == 0, chain.err
    alone = run(recipe, *LORA, *sft, "stages=[sft]")
    assert alone.status == 0, alone.err
    after = run(recipe, *LORA, "stages=[grpo]", "grpo.steps=2", f"start_from={alone.run_dir}")
    assert after.status == 0, after.err
    assert chain.run_dir is not None and after.run_dir is not None
    assert [step for step in lasting(chain) if "loss/policy" in step[1]] == [
        step for step in lasting(after) if "loss/policy" in step[1]
    ]
    assert weights_of(chain.run_dir) == weights_of(after.run_dir)
    steps = [line["metrics"] for line in after.metrics() if "loss/kl" in line["metrics"]]
    assert steps[0]["loss/kl"] == pytest.approx(0.0, abs=1e-6)
    assert len(steps) == 2 and max(step["mismatch/max"] for step in steps) <= 1e-4
    assert (after.run_dir / "export" / "adapter" / "adapter_model.safetensors").exists()


def test_a_checkpoint_of_another_shape_is_refused_with_the_remedy(recipe: Path, straight: Finished) -> None:
    done = run(recipe, *LORA, f"start_from={straight.run_dir}")
    assert done.status == 1
    assert "model.lora.rank=0" in done.err and "export" in done.err

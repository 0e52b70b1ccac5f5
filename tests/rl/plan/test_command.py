"""The command: exit status, what it prints for people and machines, what it refuses; and what rl.train asks of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.preflight import Device
from rl import train
from rl.config import load_recipe
from rl.plan import gate
from rl.plan import plan as plan_module
from rl.plan.__main__ import main, sectioned

LOCUS, FOCUS, FOCUS_72B, TINY = (
    "recipes/locus/qwen2_5_vl_7b.yaml",
    "recipes/focus/qwen2_vl_7b.yaml",
    "recipes/focus/qwen2_vl_72b.yaml",
    "recipes/locus/tiny.yaml",
)


def test_it_answers_without_torch_ray_or_a_network() -> None:
    """In a process of its own: nothing heavy is imported, and any socket is an error."""
    program = (
        "import socket, sys\n"
        "socket.socket = None\n"
        "from rl.plan.__main__ import main\n"
        f"status = main([{LOCUS!r}])\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'deepspeed', 'verl'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("locus-qwen2_5_vl_7b: 1 × 8 A100-80G")


def test_what_it_prints_says_everything_and_pastes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([FOCUS, "--explain"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    for wanted in (
        *("sft: memory", "grpo: memory", "weights", "gradients", "optimizer", "activations", "kv cache", "headroom"),
        *("capacity", "learner", "rollout", "reference", "prefill", "decode", "update", "collectives", "sync", "validation"),
        *(
            "samples/s",
            "answer tokens/s",
            "GPU-hours",
            "an estimate",
            "host memory",
            "disk",
            "compute_efficiency",
            "it fits",
        ),
    ):
        assert wanted in printed, wanted


def test_every_recipe_that_names_gpus_fits_them(capsys: pytest.CaptureFixture[str]) -> None:
    checked = 0
    for path in sorted(Path("recipes").glob("*/*.yaml")):
        if load_recipe(path).plan.gpu is not None:
            checked += 1
            assert main([str(path)]) == 0, f"{path}\n{capsys.readouterr().out}"
    assert checked >= 6


def test_what_does_not_fit_exits_1_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([LOCUS, "gpu=a100-40gb"]) == 1
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "NO" in printed
    assert "it does NOT fit:" in printed
    advised = printed.split("this fits, planned again with it:\n")[1].splitlines()[0].split()
    assert main([LOCUS, "gpu=a100-40gb", *advised]) == 0


def test_json_carries_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([LOCUS, "nodes=2", "gpu=H100", "price=3", "learner.ranks=8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["hardware"]["nodes"], plan["hardware"]["gpu"]["name"]) == (2, "H100")
    stage = plan["stages"]["grpo"]
    (learner,) = [role for role in stage["roles"] if role["role"] == "learner"]
    assert learner["actors"] == 8
    assert learner["total"] == sum(item["bytes"] for item in learner["items"])
    assert plan["gpu_hours"] == pytest.approx(stage["step_seconds"] * 194 / 3600 * 16)
    assert plan["usd"] == pytest.approx(3 * plan["gpu_hours"])
    exposed = sum(phase["seconds"] - phase["hidden"] for phase in stage["phases"])
    assert stage["step_seconds"] == pytest.approx(exposed)


def test_a_recipe_on_cpu_is_planned_in_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([TINY]) == 0
    printed = capsys.readouterr().out
    assert "no GPU: this recipe runs on CPU" in printed
    assert "host memory:" in printed
    assert "GPU-hours" not in printed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([LOCUS, "gpu=H10"], "did you mean `H100`"),
        ([LOCUS, "gpu=a100"], "may be A100-40G, A100-80G"),
        ([LOCUS, "node=2"], "did you mean `nodes`"),
        ([LOCUS, "plan.gpus_per_nod=2"], "did you mean `plan.gpus_per_node`"),
        ([LOCUS, "learner.rank=8"], "did you mean `learner.ranks`"),
        ([LOCUS, "nodes=two"], "plan.nodes"),
        ([LOCUS, "--jason"], "there is no option --jason"),
        ([LOCUS, TINY], "one recipe is planned at a time"),
        (["recipes/none.yaml"], "there is no recipe"),
        ([LOCUS, "model.path=Qwen/Qwen2.5-VL-7B-Instruc"], "did you mean Qwen/Qwen2.5-VL-7B-Instruct"),
    ],
)
def test_what_is_not_known_exits_2(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert complaint in capsys.readouterr().err


def test_short_keys_are_the_plans() -> None:
    assert sectioned("gpus_per_node=4") == "plan.gpus_per_node=4"
    assert sectioned("name=x") == "name=x"
    assert sectioned("rollout.actors=1") == "rollout.actors=1"


def test_training_refuses_what_cannot_fit_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [LOCUS, "plan.gpu=A100-40G", f"runs={tmp_path / 'runs'}", "data.train=none", "data.validation=none"]
    assert train.main(words) == 2
    told = capsys.readouterr().err
    assert "plan: grpo: a learner GPU needs" in told
    assert "plan.enforce=false" in told
    assert not (tmp_path / "runs").exists()
    assert gate.refusal(load_recipe(LOCUS, ["plan.gpu=A100-40G", "plan.enforce=false"])) == []


def test_training_is_checked_against_this_machines_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that names no GPU, on a machine with GPUs, unless it joins a cluster whose GPUs are not known."""
    recipe = load_recipe(LOCUS, ["plan.gpu=null"])
    small = tuple(Device("NVIDIA A100-SXM4-40GB", 40960) for _ in range(8))
    monkeypatch.setattr(gate, "visible_devices", lambda: small)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert any("a learner GPU needs" in line for line in gate.refusal(recipe))
    monkeypatch.setattr(gate, "visible_devices", lambda: tuple(Device("NVIDIA A100-SXM4-80GB", 81920) for _ in range(8)))
    monkeypatch.setattr(gate, "machine_memory", lambda: 1 << 41)
    assert gate.refusal(recipe) == []
    monkeypatch.setattr(gate, "visible_devices", lambda: small)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert gate.refusal(recipe) == []


def test_what_cannot_be_planned_is_said_and_may_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = load_recipe(LOCUS, ["model.path=someone/unknown-vl"])
    assert gate.refusal(recipe) == []
    assert "plan: not checked: model.path=someone/unknown-vl" in capsys.readouterr().out


def test_a_machine_without_gpus_must_hold_the_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "visible_devices", lambda: ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert gate.refusal(load_recipe(TINY)) == []
    monkeypatch.setattr(plan_module, "machine_memory", lambda: 1 << 30)
    assert any("memory must hold" in line for line in gate.refusal(load_recipe(TINY)))

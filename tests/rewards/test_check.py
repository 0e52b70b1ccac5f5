"""The checker finds each kind of bad reward, passes the good ones, and tells what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

import rewards
from rewards.check import check, main
from rewards.config import RewardConfig
from rewards.hostile import hostile_completions


@pytest.fixture(autouse=True)
def user_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize(("name", "highest"), [("locus", 1.0), ("focus", 1.5), ("iou", 1.0)])
def test_our_own_rewards_pass(name: str, highest: float) -> None:
    report = check(RewardConfig(name))
    assert report.violations == []
    assert min(report.totals()) == 0.0 and highest - 0.02 < max(report.totals()) <= highest


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("user_rewards:brittle", "failure"),
        ("user_rewards:random_score", "unstable"),
        ("user_rewards:constant", "flat"),
        ("user_rewards:unpicklable", "unpicklable"),
    ],
)
def test_a_bad_reward_is_caught_and_the_remedy_printed(name: str, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 1
    printed = capsys.readouterr().out
    assert f"{rule}: " in printed and "violations" in printed


def test_a_reward_that_always_hangs_ends_the_check_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text("def reward(sample, completion):\n    while True: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = check(RewardConfig("hangs:reward", timeout_s=0.2))
    assert {violation.rule for violation in report.violations} == {"timeout"}
    assert 3 <= len(report.violations) <= 20


def test_the_documented_example_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten lines of the package's docstring, as they stand."""
    before_the_commands = (rewards.__doc__ or "").partition("Check it")[0]
    code = [line[4:] for line in before_the_commands.splitlines() if line.startswith("    ")]
    (tmp_path / "my_rewards.py").write_text("\n".join(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    report = check(RewardConfig("my_rewards:near_and_brief", {"limit": 200}))
    assert report.violations == [] and max(report.totals()) == 1.0


def test_an_unknown_name_is_one_line_and_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["locsu"]) == 1
    assert "did you mean 'locus'" in capsys.readouterr().out.replace("\n", " ")


def test_the_hostile_texts_are_many_and_the_same_every_time() -> None:
    cases = hostile_completions()
    assert cases == hostile_completions() and len(cases) > 300
    assert {"structure", "numbers", "boxes", "characters", "size", "truncated", "fuzzed"} <= {case.kind for case in cases}

"""A reward's name leads to its function, or to an error that says what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards import locus
from rewards.registry import RewardLookupError, resolve


@pytest.fixture(autouse=True)
def user_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_registered_and_own_rewards_are_found() -> None:
    import user_rewards

    assert resolve("locus", {"alpha": 0.2}) is locus.reward
    assert resolve("user_rewards:length", {"scale": 2.0}) is user_rewards.length


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("locsu", {}, "did you mean 'locus'"),
        ("nothing_like_it", {}, "known: focus, iou, locus"),
        ("no_such_module:reward", {}, "no module 'no_such_module' on the path"),
        ("rewards.no_such:reward", {}, "no module 'rewards.no_such'"),
        ("user_rewards:lenght", {}, "did you mean 'length'"),
        ("user_rewards:NOT_A_FUNCTION", {}, "is a float, not a function"),
        ("user_rewards:asynchronous", {}, "async"),
        ("user_rewards:too_few", {}, "cannot be called as reward(sample, completion)"),
        ("user_rewards:length", {"factor": 2.0}, "factor"),
        (":length", {}, "package.module:function"),
        ("user_rewards:", {}, "package.module:function"),
    ],
)
def test_everything_else_is_refused_with_the_remedy(name: str, kwargs: dict, words: str) -> None:
    with pytest.raises(RewardLookupError) as refused:
        resolve(name, kwargs)
    assert words in str(refused.value)


def test_a_module_that_fails_at_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_something.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RewardLookupError, match="needs 'not_installed_anywhere'"):
        resolve("needs_something:reward")
    with pytest.raises(RewardLookupError, match="ZeroDivisionError"):
        resolve("broken_module:reward")

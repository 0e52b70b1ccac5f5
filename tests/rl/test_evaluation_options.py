"""What the command line of the evaluation accepts, and what it says otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rl.config import ConfigError
from rl.evaluation_options import EvaluationOptions, parse_options


def test_own_options_are_read_and_the_recipes_keys_passed_on() -> None:
    given = "checkpoint=runs/a shots=4,1 datasets=TAO:d/tao,GOT:d:odd samples=7 backend=hf pictures=0 model.path=m seed=3"
    options, overrides = parse_options(given.split())
    assert options == EvaluationOptions(
        checkpoint="runs/a", shots=(1, 4), datasets={"TAO": "d/tao", "GOT": "d:odd"}, samples=7, backend="hf", pictures=0
    )
    assert overrides == ["model.path=m", "seed=3"]


def test_the_recipes_checkpoint_section_is_not_the_checkpoint() -> None:
    options, overrides = parse_options(["checkpoint.every=5"])
    assert options.checkpoint is None and overrides == ["checkpoint.every=5"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("shot=1", "no key `shot`; did you mean `shots`?"),
        ("chekpoint=runs/a", "did you mean `checkpoint`?"),
        ("rolout.dtype=float32", "did you mean `rollout`?"),
        ("qqq=1", "options are checkpoint, shots"),
        ("hf", "key=value, got `hf`"),
        ("backend=vlm", "did you mean `vllm`?"),
        ("shots=1,two", "whole number from 1, got `two`"),
        ("shots=0", "whole number from 1, got `0`"),
        ("shots=2,2", "names a count twice"),
        ("datasets=TAO", "`TAO` is not NAME:DIR"),
        ("datasets=A:x,A:y", "names A twice"),
        ("paper=qwen2_vl", "did you mean `qwen2_vl_7b`?"),
        ("checkpoint=", "has no value"),
        ("samples=-1", "whole number from 1"),
    ],
)
def test_what_cannot_be_is_named_with_the_nearest(argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_options([argument])
    assert said in str(raised.value)


def test_hugging_face_answers_greedily_only() -> None:
    with pytest.raises(ConfigError, match="use backend=vllm"):
        parse_options(["backend=hf", "sampling=sampled"])


def test_help_needs_neither_torch_nor_ray() -> None:
    script = (
        "import sys; from rl.evaluate import main; status = main(['--help'])\n"
        "assert not {'torch', 'ray', 'transformers', 'vllm'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "usage: python -m rl.evaluate" in done.stdout and "shots=1,2,4" in done.stdout

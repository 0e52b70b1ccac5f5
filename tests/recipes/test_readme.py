"""What the READMEs print is true: their Python runs, their commands load, the tests and paths they name exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.store import SampleStore
from rewards.check import check
from rewards.config import RewardConfig
from rl.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
RECIPES = [ROOT / "recipes/locus/README.md", ROOT / "recipes/focus/README.md"]
READMES = [README, ROOT / "CONTRIBUTING.md", ROOT / "cluster/README.md", *RECIPES]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_first_own_reward_passes_the_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, _ = blocks("python")
    (tmp_path / "my_rewards.py").write_text(reward)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)  # another test's, in the same process
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = check(RewardConfig(name="my_rewards:center_distance"))
    assert report.violations == []
    assert max(report.totals("right answers")) > 0.99
    sys.modules.pop("my_rewards")


def test_the_first_own_dataset_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, dataset = blocks("python")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "gray").save("photo.jpg")
    for split in ("train", "validation"):
        Path(f"{split}.csv").write_text("file,what,x1,y1,x2,y2\nphoto.jpg,the red mug,8,4,20,16\n")
    exec(compile(dataset, "my_dataset.py", "exec"), {})
    (sample,) = SampleStore("datasets/mine", split="validation")
    assert sample.target.corners == (8.0, 4.0, 20.0, 16.0)
    assert sample.images[0].open().size == (64, 48)


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_and_overrides_load(path: Path) -> None:
    """All but the line that shows a refusal."""
    text = re.sub(r"\\\n", " ", path.read_text())
    for recipe, overrides in re.findall(r"python -m rl\.train (recipes/\S+\.yaml)([^\n#`]*)", text):
        items = [item for item in overrides.split() if "=" in item and not item.startswith("grpo.step=")]
        load_recipe(ROOT / recipe, items)


def test_the_tests_and_files_it_names_exist() -> None:
    text = README.read_text()
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) >= 10
    assert [name for name in named if f"def {name}(" not in sources] == []
    links = re.findall(r"\]\(([\w/.]+)\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []

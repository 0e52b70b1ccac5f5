"""`python -m rl.evaluate` from recipe to files, on the committed tiny model and a few LOCUS and FOCUS samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.sample import EncodedImage, Sample
from data.store import SampleStore
from data.store_writer import write_samples
from rl.demo import RECIPES
from rl.evaluate import main
from tests.rl.focus_case import episode
from tests.rl.locus_case import write_locus

RECIPE = str(RECIPES / "tiny.yaml")


@pytest.fixture(scope="module")
def locus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_locus(tmp_path_factory.mktemp("locus"), 8)


def evaluate(out: Path, *arguments: str) -> int:
    return main([RECIPE, f"out={out}", "backend=hf", "rollout.max_tokens=24", *arguments])


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    return json.loads((out / "evaluation.json").read_text()), records


def torn(sample: Sample, name: str) -> Sample:
    """Its last image cut short, so that it does not decode."""
    last = sample.images[-1]
    damaged = EncodedImage(last.width, last.height, encoded=(last.encoded or b"")[:60])
    return replace(sample, id=name, images=(*sample.images[:-1], damaged))


def test_a_baseline_end_to_end(locus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert evaluate(out, f"data.validation={locus}", "pictures=3") == 0
    written, records = read(out)
    (row,) = written["rows"]
    assert (row["dataset"], row["shots"], row["samples"], row["answered"], row["failures"]) == ("locus", None, 8, 8, {})
    assert written["subject"]["policy"] == {"path": "recipes/locus/tiny_model", "kind": "base model"}
    assert written["environment"]["packages"]["torch"] and written["averages"] == []
    # The metrics again, from the records.
    assert [record["id"] for record in records] == [sample.id for sample in SampleStore(locus, "validation")]
    ious = [record["iou"] for record in records]
    assert row["metrics"]["mean_iou"]["value"] == pytest.approx(sum(ious) / 8)
    assert row["metrics"]["acc@0.5"]["value"] == sum(iou >= 0.5 for iou in ious) / 8
    assert row["metrics"]["mean_iou"]["low"] <= sum(ious) / 8 <= row["metrics"]["mean_iou"]["high"]
    assert sorted(path.name for path in out.iterdir()) == [
        *("evaluation.json", "index.html", "pictures", "records.jsonl", "table.md")
    ]
    pictures = sorted((out / "pictures").iterdir())
    assert len(pictures) == 3 and all(f'src="pictures/{path.name}"' in (out / "index.html").read_text() for path in pictures)
    with Image.open(pictures[0]) as picture:
        assert picture.height == 256
    shown = capsys.readouterr().out
    assert f"{row['metrics']['mean_iou']['value'] * 100:.1f} [" in shown and str(out) in shown


def test_shots_datasets_failures_and_an_average(tmp_path: Path) -> None:
    """Two datasets of 4-shot episodes; a tiny model trained on other prompts answers none of them with a box."""
    write_samples(tmp_path / "a", {"validation": [episode(4, name) for name in "pqr"]})
    lost = torn(episode(4, "lost"), "lost")
    write_samples(tmp_path / "b", {"validation": [episode(4, "s"), lost, episode(1, "t")]})
    out, long = tmp_path / "out", "rollout.max_model_len=2048"
    assert evaluate(out, f"datasets=TAO:{tmp_path / 'a'},GOT:{tmp_path / 'b'}", "shots=1,2", long, "paper=qwen2_vl_7b") == 0
    written, records = read(out)
    assert [(row["dataset"], row["shots"], row["derived_from"], row["answered"]) for row in written["rows"]] == [
        ("TAO", 1, 4, 3),
        ("TAO", 2, 4, 3),
        ("GOT", 1, None, 1),
        ("GOT", 2, 4, 1),
    ]
    assert [record["id"] for record in records if record["dataset"] == "GOT"] == ["tao/t@1", "tao/s@4", "lost"]
    (failure,) = [record for record in records if "failure" in record]
    assert (failure["id"], failure["shots"]) == ("lost", 2) and "cannot be decoded" in failure["failure"]
    assert sum(written["rows"][3]["failures"].values()) == 1
    assert [(each["shots"], each["datasets"]) for each in written["averages"]] == [(1, ["TAO", "GOT"]), (2, ["TAO", "GOT"])]
    assert written["rows"][1]["paper"][2] == {"method": "FOCUS 7B", "mean_iou": 0.63}
    table = (out / "table.md").read_text()
    assert "| TAO | 2 (of 4) | base model |" in table and "*paper: FOCUS 7B* | *63.0*" in table
    assert "GOT 2-shot: 1 of 2 samples were not answered" in table and "| average | 2 | base model |" in table


def test_a_set_without_an_answer_is_written_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_samples(tmp_path / "bad", {"validation": [torn(episode(1), "x"), torn(episode(1), "y")]})
    assert evaluate(tmp_path / "out", f"data.validation={tmp_path / 'bad'}") == 1
    written, records = read(tmp_path / "out")
    assert written["rows"][0]["metrics"] == {} and written["rows"][0]["answered"] == 0
    assert [record["id"] for record in records] == ["x", "y"]
    assert "tao 1-shot: none of 2 samples was answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["shot=1"], 2, "config: there is no key `shot`; did you mean `shots`?"),
        (["rollout.max_token=3"], 2, "did you mean `rollout.max_tokens`?"),
        (["checkpoint=/nowhere"], 1, "checkpoint=/nowhere: there is no such folder"),
        (["data.validation=/nowhere"], 1, "no 'validation' split in dataset folder /nowhere"),
        (["model.path=/nowhere/model"], 1, "/nowhere/model"),
    ],
)
def test_errors_are_one_message(
    arguments: list[str], status: int, said: str, locus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "out", f"data.validation={locus}", *arguments) == status
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()

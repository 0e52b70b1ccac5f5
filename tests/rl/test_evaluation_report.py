"""The files of an evaluation: table text by hand, numbers as JSON, pictures by their pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data.sample import Sample
from data.store import SampleStore
from data.store_writer import write_samples
from rl.evaluation_metrics import measure
from rl.evaluation_pictures import ANSWER, TRUTH, choose, draw, write_pictures
from rl.evaluation_report import markdown, page, write_results
from rl.evaluation_results import Failure, Results, Row, Subject
from rl.evaluation_sets import EvaluationSet
from rl.paper_results import PAPER_RESULTS, paper_key, paper_results
from rl.policy_folder import PolicyFolder
from rl.records import Sampling
from rl.report.boxes import SUPPORT
from rl.runlog import Corners, ValidationRecord
from tests.rl.focus_case import episode

PREDICTED: Corners = (8.0, 8.0, 40.0, 40.0)


def record(sample: Sample, iou: float, prediction: Corners | None = PREDICTED) -> ValidationRecord:
    picks = prediction is not None
    return ValidationRecord(sample.id, 56, 56, sample.target.corners, prediction, iou, picks, "text | more", "greedy")


def row(store: SampleStore, dataset: str, shots: int, ious: list[float | None], derived_from: int | None = None) -> Row:
    """IoU a sample; None for an answer without a box."""
    asked = EvaluationSet(dataset, Path("d"), shots, derived_from, 5, store, tuple(range(len(ious))))
    pairs = zip(asked, ious, strict=True)
    records = tuple(record(s, 0.0, None) if iou is None else record(s, iou) for s, iou in pairs)
    return Row(asked, tuple(range(len(ious))), records, (), measure(records, 0, dataset, shots))


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    write_samples(tmp_path / "set", {"validation": [episode(4, name) for name in "abcdefgh"]})
    return SampleStore(tmp_path / "set", "validation")


@pytest.fixture
def results(store: SampleStore) -> Results:
    """Constant IoU, so that intervals have no width and the text is known."""
    policy = PolicyFolder("runs/x/export", "run")
    subject = Subject(
        "focus", "runs/x", policy, "hf", Sampling(1, 0.0, 1.0, 64, 0), "greedy", 0, "qwen2_vl_7b", {"dtype": "float32"}
    )
    tao, got = row(store, "TAO", 2, [0.6] * 4, derived_from=4), row(store, "got-10k", 2, [0.8] * 3)
    lost = (Failure("h", "image cannot be decoded"),)
    return Results(subject, (tao, replace(got, failures=lost)), seconds=1.5)


def test_a_list_s_unasked_records_are_told(tmp_path: Path, results: Results) -> None:
    write_samples(tmp_path / "list", {"validation": [episode(2, name, "iploc") for name in "ab"]})
    splits = {"validation": {"iploc, 2-shot": {"wanted": 3, "kept": 2}}}
    (tmp_path / "list" / "build.json").write_text(json.dumps({"splits": splits}))
    listed = row(SampleStore(tmp_path / "list", "validation"), "LaSOT list", 2, [0.5] * 2)
    listed = replace(listed, asked=replace(listed.asked, folder=tmp_path / "list"))
    told = markdown(replace(results, rows=(*results.rows, listed)))
    assert "LaSOT list 2-shot: 2 of 3 records of the list could be asked" in told
    assert "records of the list" not in markdown(results)


def test_the_table_stands_beside_the_papers(results: Results) -> None:
    lines = markdown(results).splitlines()
    assert lines[2:12] == [
        "| dataset | shots | model | mIoU | mIoU, parsed | parsed | ACC@0.5 | ACC@0.75 | picks target | samples | failed |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| TAO | 2 (of 4) | run | 60.0 [60.0, 60.0] | 60.0 [60.0, 60.0] | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] "
        "| 0.0 [0.0, 0.0] | – | 4 | 0 |",
        "| *TAO* | *2* | *paper: Qwen2-VL-7B* | *31.6* | *–* | *–* | *–* | *–* | *–* | *–* | *–* |",
        "| *TAO* | *2* | *paper: IPLoc 7B* | *54.3* | *–* | *–* | *–* | *–* | *–* | *–* | *–* |",
        "| *TAO* | *2* | *paper: FOCUS 7B* | *63.0* | *–* | *–* | *–* | *–* | *–* | *–* | *–* |",
        "| got-10k | 2 | run | 80.0 [80.0, 80.0] | 80.0 [80.0, 80.0] | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] "
        "| 100.0 [100.0, 100.0] | – | 3 | 1 |",
        "| *got-10k* | *2* | *paper: Qwen2-VL-7B* | *37.0* | *–* | *–* | *–* | *–* | *–* | *–* | *–* |",
        "| *got-10k* | *2* | *paper: IPLoc 7B* | *68.1* | *–* | *–* | *–* | *–* | *–* | *–* | *–* |",
        "| *got-10k* | *2* | *paper: FOCUS 7B* | *80.6* | *–* | *–* | *–* | *–* | *–* | *–* | *–* |",
    ]
    assert lines[12].startswith("| average | 2 | run | 70.0 [70.0, 70.0] |")
    told = "\n".join(lines[13:])
    assert "supports i·(K // k), i < k" in told and "published figures on their own splits, not ours" in told
    assert "got-10k 2-shot: 1 of 3 samples were not answered and are in no metric: 1× image cannot be decoded" in told


def test_json_and_records_hold_what_the_table_shows(results: Results, tmp_path: Path) -> None:
    write_results(results, [], tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["rows"][0]["metrics"]["mean_iou"] == pytest.approx({"value": 0.6, "low": 0.6, "high": 0.6})
    assert written["rows"][1]["failures"] == {"image cannot be decoded": 1}
    assert written["averages"][0]["metrics"]["mean_iou"]["value"] == pytest.approx(0.7)
    assert written["subject"]["sampling"]["temperature"] == 0.0
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and lines[0]["target"] == [5, 6, 25, 36] and lines[-1]["failure"] == "image cannot be decoded"


def test_an_average_is_not_taken_over_a_set_without_answers(results: Results) -> None:
    empty = replace(results.rows[1], places=(), records=(), measured=measure([], 0))
    assert replace(results, rows=(results.rows[0], empty)).averages == []
    assert "| got-10k | 2 | run | – | – |" in markdown(replace(results, rows=(results.rows[0], empty)))


def test_a_picture_shows_supports_truth_and_answer(store: SampleStore) -> None:
    """56-px images at a height of 256: scale 32/7. Supports are 256 wide, 6 px apart; boxes are drawn from their corner."""
    sample = store[0]
    picture = draw(sample, record(sample, 0.5))
    assert picture.size == (5 * 256 + 4 * 6, 256)
    scale = 256 / 56

    def colour(panel: int, x: float, y: float) -> object:
        return picture.getpixel((panel * 262 + round(x * scale), round(y * scale)))

    for support in range(4):
        assert colour(support, support, 20) == SUPPORT  # its box starts at x = its number
        assert colour(support, 35, 50) == (support,) * 3
    assert colour(4, 5, 20) == TRUTH and colour(4, 15, 6) == TRUTH
    assert colour(4, 20, 40) == ANSWER and colour(4, 40, 30) == ANSWER
    assert colour(4, 50, 50) == (100,) * 3
    without = draw(sample, record(sample, 0.0, None))
    assert ANSWER not in {colour for _, colour in without.getcolors(1 << 20) or []}


def test_pictures_are_spread_over_rows_and_ranks(store: SampleStore, tmp_path: Path) -> None:
    rows = [row(store, "A", 4, [0.1, 0.9, 0.5, None, 0.3]), row(store, "B", 4, [0.2, 0.7])]
    chosen = [(row.dataset, row.records[at].iou) for row, at in choose(rows, 5)]
    assert chosen == [("A", 0.9), ("A", 0.3), ("A", 0.0), ("B", 0.7), ("B", 0.2)]
    pictures = write_pictures(rows, 5, tmp_path)
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == [
        *("00-A_4-shot-tao_b_4.png", "01-A_4-shot-tao_e_4.png", "02-A_4-shot-tao_d_4.png"),
        *("03-B_4-shot-tao_b_4.png", "04-B_4-shot-tao_a_4.png"),
    ]
    assert pictures[2].caption == "A 4-shot · tao/d@4 · no box"
    with Image.open(tmp_path / pictures[0].file) as written:
        assert written.convert("RGB").tobytes() == draw(store[1], rows[0].records[1]).tobytes()


def test_the_page_shows_table_and_pictures_and_escapes(results: Results, tmp_path: Path) -> None:
    sneaky = replace(results, subject=replace(results.subject, recipe="<script>"))
    html = page(sneaky, write_pictures(results.rows, 2, tmp_path))
    assert html.count("<img") == 2 and "<script>" not in html and "paper: FOCUS 7B" in html


def test_the_papers_figures_are_found_by_model_dataset_and_shots() -> None:
    """Spot checks against FOCUS's and LOCUS's tables."""
    found = {result.method: result.mean_iou[4] for result in paper_results("qwen2_vl_7b", "ICL-LaSOT", 4)}
    assert found == {"Qwen2-VL-7B": 25.0, "IPLoc 7B": 59.4, "FOCUS 7B": 65.6}
    assert paper_results("qwen2_vl_7b", "lasot", 4) == paper_results("qwen2_vl_7b", "ICL-LaSOT", 4)
    assert paper_results("qwen2_vl_7b", "PerMIRS", 4) == []
    assert [result.accuracy[0.75] for result in paper_results("qwen3_vl_4b", "locus", None)] == [11.2, 31.0]
    assert paper_results(None, "TAO", 4) == paper_results("qwen2_vl_7b", "other", 4) == []
    assert paper_key("qwen2_vl", 8192) == "qwen2_vl_72b" and paper_key("qwen2_5_vl", 96) is None
    assert all(0 < value < 100 for result in PAPER_RESULTS for value in result.mean_iou.values())

"""summary.json and report.html: golden figures by hand, hostile text, and runs that are empty, short, failed or resumed."""

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import pytest
from PIL import Image as PILImage

from data.box import Box, Frame
from data.sample import EncodedImage, ImagePart, Sample, SupportBoxPart
from data.store import samples_to_table
from data.store_writer import DatasetWriter
from rl import environment
from rl.report import images_of, render, write_report
from rl.report.__main__ import main
from rl.report.boxes import SUPPORT
from rl.report.charts import Line, line_chart, smooth, thin, ticks
from rl.report.gallery import select
from rl.report.markup import Markup, duration, number, signed, tag
from rl.runlog import MetricsWriter, StepMetrics, ValidationRecord, cut_after, write_validation
from rl.summary import build_summary, write_summary
from tests.rl.focus_case import episode

HOSTILE = """</pre><script>alert("1")</script><img src=x onerror='alert(2)'> & <b>bold</b>"""


def answer(
    sample_id: str, iou: float, text: str = "<answer>[1, 2, 3, 4]</answer>", mode: str = "greedy"
) -> ValidationRecord:
    box = (10.0, 10.0, 40.0, 40.0)
    return ValidationRecord(
        sample_id, 112, 84, box, box if iou else None, iou, iou > 0, text, mode, ((60.0, 10.0, 90.0, 40.0),)
    )


def write_run(
    run_dir: Path, lines: Sequence[StepMetrics], config: str = "name: demo\nseed: 7\nstages: [grpo]\ngrpo: {steps: 2}\n"
) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(config)
    writer = MetricsWriter(run_dir / "metrics.jsonl")
    for line in lines:
        writer.append(line)
    writer.close()


def grpo(step: int, metrics: Mapping[str, float], failures: Mapping[str, int] | None = None) -> StepMetrics:
    return StepMetrics("grpo", step, 1_785_000_000.0 + step, metrics, failures or {})


def small_run(run_dir: Path) -> None:
    """Three lines whose every figure is easy to compute by hand."""
    write_run(
        run_dir,
        [
            grpo(0, {"validation/greedy/mean_iou": 0.5, "validation/greedy/picks_target": 0.75, "time/validate": 4.0}),
            grpo(
                1,
                {"time/rollout": 1.0, "time/update": 2.0, "time/publish": 0.5, "time/step": 4.0}
                | {"throughput/samples_per_s": 10.0, "mismatch/max": 1e-6, "mismatch/mean": 1e-7, "reward/failures": 2.0}
                | {"memory/learner0_peak_mib": 900.0, "memory/rollout0_peak_mib": 1300.0, "reward/total": 0.25},
                {"reward: timed out": 2},
            ),
            grpo(
                2,
                {"time/rollout": 2.0, "time/update": 3.0, "time/publish": 0.5, "time/step": 6.0, "time/validate": 6.0}
                | {"throughput/samples_per_s": 20.0, "mismatch/max": 3e-6, "mismatch/mean": 3e-7, "reward/failures": 1.0}
                | {"memory/learner0_peak_mib": 950.0, "memory/rollout0_peak_mib": 1200.0, "reward/total": 0.75}
                | {"validation/greedy/mean_iou": 0.625, "validation/greedy/picks_target": 0.5},
                {"reward: timed out": 1},
            ),
        ],
    )
    write_validation(run_dir, "grpo", 0, [answer("a", 0.2), answer("b", 0.8), answer("c", 0.5), answer("d", 0.5)])
    write_validation(run_dir, "grpo", 2, [answer("a", 0.7), answer("b", 0.6), answer("c", 0.5), answer("d", 0.7)])


def long_run(run_dir: Path, steps: int) -> None:
    write_run(run_dir, [grpo(step, {"reward/total": step / steps, "time/step": 1.0}) for step in range(1, steps + 1)])


def test_summary_golden_by_hand(tmp_path: Path) -> None:
    small_run(tmp_path)
    summary = build_summary(tmp_path)
    assert (summary["name"], summary["seed"], summary["stage"], summary["steps"], summary["planned_steps"]) == (
        "demo",
        7,
        "grpo",
        2,
        2,
    )
    assert summary["validation"]["greedy"] == {
        "start_step": 0,
        "final_step": 2,
        "metrics": {
            "mean_iou": {"start": 0.5, "final": 0.625, "delta": 0.125},
            "picks_target": {"start": 0.75, "final": 0.5, "delta": -0.25},
        },
    }
    assert summary["run_time_s"] == 20.0  # steps 4 + 6, validations 4 + 6
    assert {name: phase["total_s"] for name, phase in summary["phases"].items()} == {
        "validate": 10.0,
        "rollout": 3.0,
        "update": 5.0,
        "publish": 1.0,
        "other": 1.0,
    }
    assert summary["phases"]["update"]["mean_s"] == 2.5
    assert summary["phases"]["update"]["share"] == 0.5
    assert summary["phases"]["validate"]["share"] is None
    assert summary["share_neither_rollout_nor_update"] == pytest.approx(0.2)
    assert summary["samples_per_s"] == 16.0  # (10·4 + 20·6) answers in 10 s
    assert summary["tokens_per_s"] is None
    assert (summary["mismatch_max"], summary["mismatch_mean"]) == (3e-6, pytest.approx(2e-7))
    assert summary["peak_memory_mib"] == {"learner0": 950.0, "rollout0": 1300.0}
    assert (summary["lost"], summary["failure_reasons"]) == ({"reward/failures": 3.0}, {"reward: timed out": 3})
    # Changes of IoU: +0.5, −0.2, 0, +0.2; mean 0.125, sample variance (0.1406+0.1056+0.0156+0.0056)/3 = 0.0892.
    assert summary["paired"] == {
        "samples": 4,
        "iou_delta": pytest.approx(0.125),
        "iou_delta_ci95": pytest.approx(1.96 * math.sqrt(0.2675 / 3 / 4)),
        "improved": 2,
        "unchanged": 1,
        "worse": 1,
    }


def test_summary_is_written_as_strict_json_even_with_values_that_are_not_finite(tmp_path: Path) -> None:
    names = (
        "time/step",
        "time/rollout",
        "time/update",
        "mismatch/max",
        "throughput/tokens_per_s",
        "validation/greedy/mean_iou",
    )
    write_run(tmp_path, [grpo(step, dict.fromkeys(names, math.nan)) for step in range(3)])
    write_summary(tmp_path)
    summary = json.loads(
        (tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert summary["mismatch_max"] is None
    assert summary["tokens_per_s"] is None


def test_summary_keeps_the_environment_of_the_run_not_of_the_reader(tmp_path: Path) -> None:
    small_run(tmp_path)
    assert build_summary(tmp_path)["environment"] is None
    recorded = environment.record(tmp_path)
    (tmp_path / "environment.json").write_text(
        (tmp_path / "environment.json").read_text().replace(recorded.cpu, "A. Nother CPU")
    )
    assert "A. Nother CPU" in build_summary(tmp_path)["device"]
    assert build_summary(tmp_path)["versions"]["torch"].startswith("2.")


def test_stages_follow_each_other(tmp_path: Path) -> None:
    lines = [StepMetrics("sft", step, float(step), {"loss/lm": 3.0 - step, "time/step": 1.0}) for step in range(3)]
    write_run(
        tmp_path,
        [*lines, grpo(1, {"reward/total": 0.5, "time/step": 2.0})],
        "stages: [sft, grpo]\nsft: {steps: 2}\ngrpo: {steps: 1}\n",
    )
    summary = build_summary(tmp_path)
    assert (summary["stage"], summary["run_time_s"]) == ("grpo", 2.0)
    assert [(stage["stage"], stage["run_time_s"]) for stage in summary["earlier_stages"]] == [("sft", 3.0)]
    page = render(tmp_path)
    assert page.index('data-metric="reward/total"') < page.index('data-metric="loss/lm"')
    assert "ended" not in page


class Page(HTMLParser):
    """Collects the elements and the text of a page, and insists that elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def photographs(sample_id: str) -> list[PILImage.Image]:
    return [PILImage.new("RGB", (112, 84), "tan"), PILImage.new("RGB", (20, 20), "navy")]


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    small_run(tmp_path)
    page = Page(write_report(tmp_path, photographs).read_text())
    names = {name for name, _ in page.elements}
    assert names.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    addresses = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in {"src", "href", "xlink:href", "srcset"}
    ]
    assert len(addresses) == 8  # four samples, a scene and a cue each
    assert all(address is not None and address.startswith("data:image/") for address in addresses)
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert not any(word in text for text in page.text for word in ("url(", "@import", "http:", "https:"))


def test_every_logged_series_is_on_the_page(tmp_path: Path) -> None:
    small_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        metrics = {
            "reward/new_part": 1.0,
            "my/own": 2.0,
            "unprefixed": 3.0,
            "loss/kl": 0.1,
            "validation/sampled/mean_iou": 0.5,
        }
        file.write(json.dumps({"stage": "grpo", "step": 3, "time": 0.0, "metrics": metrics}) + "\n")
    drawn = re.findall(r'data-metric="([^"]*)"', render(tmp_path))
    lines = [json.loads(line)["metrics"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {name for line in lines for name in line} <= {name for names in drawn for name in names.split()}


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    config = f"name: {json.dumps(HOSTILE)}\nreward: {{path: {json.dumps(HOSTILE)}}}\n"
    metrics = {
        f"reward/{HOSTILE}": 1.0,
        f"validation/greedy/{HOSTILE}": 0.5,
        "time/<i>": 1.0,
        "memory/<u>_peak_mib": 1.0,
        "time/step": 2.0,
    }
    write_run(tmp_path, [grpo(step, metrics | {"reward/failures": 1.0}, {HOSTILE: 1}) for step in (0, 1)], config)
    for step in (0, 1):
        write_validation(tmp_path, "grpo", step, [answer(f"<i>{HOSTILE}", 0.5, HOSTILE), answer("b", 0.5, HOSTILE)])
    page = Page(render(tmp_path))
    assert {name for name, _ in page.elements}.isdisjoint({"script", "u"})
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert all(attributes.get("src") != "x" for _, attributes in page.elements)
    assert page.text.count(HOSTILE) >= 5  # the name, twice; the reason; the answers


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "This run logged no step"),
        ([grpo(0, {})], "ended at GRPO step 0 of 2"),
        ([grpo(0, {"validation/greedy/mean_iou": 0.5})], "one validation, at step 0"),
        ([grpo(1, {"reward/total": 0.5, "time/step": 1.0})], "ended at GRPO step 1 of 2"),
        (
            [
                grpo(step, {"reward/total": math.nan, "mismatch/max": 0.0, "loss/kl": math.inf, "time/step": 0.0})
                for step in (1, 2)
            ],
            "not finite",
        ),
    ],
)
def test_a_run_that_is_empty_short_or_broken_has_a_page(tmp_path: Path, lines: list[StepMetrics], says: str) -> None:
    write_run(tmp_path, lines)
    write_summary(tmp_path)
    page = Page(write_report(tmp_path).read_text())
    assert says in " ".join(page.text)


def test_a_folder_with_nothing_in_it_has_a_page(tmp_path: Path) -> None:
    assert tmp_path.name in render(tmp_path)


def test_a_resumed_run_reads_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    small_run(tmp_path / "whole")
    small_run(tmp_path / "resumed")
    lines = (tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines(keepends=True)
    cut_after(tmp_path / "resumed", "grpo", 1)
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write(lines[2])
    write_validation(
        tmp_path / "resumed", "grpo", 2, [answer("a", 0.7), answer("b", 0.6), answer("c", 0.5), answer("d", 0.7)]
    )
    assert build_summary(tmp_path / "resumed") == build_summary(tmp_path / "whole")
    assert render(tmp_path / "resumed") == render(tmp_path / "whole")


def test_a_long_run_stays_small_and_keeps_its_spikes(tmp_path: Path) -> None:
    long_run(tmp_path, 20_000)
    assert len(render(tmp_path)) < 400_000
    points = [(step, 100.0 if step == 7_777 else 0.0) for step in range(20_000)]
    thinned = thin(points)
    assert len(thinned) <= 402
    assert (7_777, 100.0) in thinned
    assert [step for step, _ in thinned] == sorted(step for step, _ in thinned)


def test_the_gallery_shows_boxes_even_when_the_dataset_has_gone(tmp_path: Path) -> None:
    small_run(tmp_path)

    def gone(sample_id: str) -> Sequence[PILImage.Image]:
        raise KeyError(sample_id)

    without: list[Callable[[str], Sequence[PILImage.Image]] | None] = [None, gone]
    for images in without:
        page = render(tmp_path, images)
        assert page.count('class="blank"') == 4
        assert "data:image" not in page


def encoded(width: int, height: int = 20) -> EncodedImage:
    file = io.BytesIO()
    PILImage.new("RGB", (width, height), "tan").save(file, "png")
    return EncodedImage(width, height, encoded=file.getvalue())


def test_the_gallery_finds_the_dataset_that_the_recipe_names(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    with DatasetWriter(tmp_path / "dataset") as writer:
        prompt, target = (ImagePart(0), ImagePart(1)), Box(10, 10, 40, 40, Frame.original(112, 84))
        images = (encoded(112, 84), encoded(30, 30))
        writer.write("validation", samples_to_table([Sample(name, "test", images, prompt, target) for name in "abcd"]))
    with (tmp_path / "run" / "config.yaml").open("a") as file:
        file.write(f"data: {{validation: {json.dumps(str(tmp_path / 'dataset'))}}}\n")
    assert render(tmp_path / "run").count("data:image/png") == 8


def test_images_of_a_sample_start_with_the_scene_the_boxes_are_in() -> None:
    images = (encoded(30), encoded(40), encoded(50))
    target = Box(1, 1, 9, 9, Frame.original(50, 20))
    sample = Sample("s", "test", images, tuple(ImagePart(index) for index in range(3)), target, target_image=2)
    assert [image.width for image in images_of([sample])("s")] == [50, 30, 40]


def test_the_gallery_picks_each_kind_in_proportion_and_at_least_one() -> None:
    changes = [0.5] * 200 + [0.0] * 50 + [-0.3] * 6
    pairs = [(answer(f"{index:03d}", 0.4), answer(f"{index:03d}", 0.4 + change)) for index, change in enumerate(changes)]
    selection = select(pairs, places=12)
    assert (selection.total, sum(selection.chosen)) == ((200, 50, 6), 12)
    assert selection.chosen == (9, 2, 1)  # 12·200/256 = 9.4, 12·50/256 = 2.3, 12·6/256 = 0.3 but at least one
    assert select(list(reversed(pairs)), places=12) == selection


def test_the_gallery_of_few_samples_shows_them_all() -> None:
    pairs = [(answer(name, 0.2), answer(name, 0.2 + change)) for name, change in (("a", 0.5), ("b", 0.0), ("c", -0.2))]
    assert [pair[0].id for pair in select(pairs).pairs] == ["a", "b", "c"]


def test_the_command_writes_both_files_and_names_a_missing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run(tmp_path)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    assert main() == 0
    assert {"summary.json", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "nowhere")])
    assert main() == 1
    assert "there is no run directory" in capsys.readouterr().err


def test_a_chart_names_itself_and_marks_gaps() -> None:
    points = [(0, 1.0), (1, math.nan), (2, 3.0)]
    chart = ElementTree.fromstring(line_chart("KL", [Line("kl", "blue", points)], (0, 2)))
    assert chart.findtext("title") == "KL"
    assert "first 1.00, last 3.00" in (chart.findtext("desc") or "")
    assert [path.get("class") for path in chart.iter("path")] == ["bad"]
    assert "nan" not in ElementTree.tostring(chart, "unicode")


def test_ticks_cover_the_values_in_round_steps() -> None:
    assert ticks(0.12, 0.93) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(-3.0, 41.0) == [-20.0, 0.0, 20.0, 40.0, 60.0]
    assert ticks(2e-7, 9e-7) == [2e-7, 4e-7, 6e-7, 8e-7, 1e-6]


def test_smoothing_weighs_the_recent_and_has_no_bias_at_the_start() -> None:
    # Window 3 keeps 1 − 2/4 = ½: 1, then (½·1 + 4)/(1½), then (½(½·1 + 4) + 4)/(1¾).
    assert smooth([(0, 1.0), (1, 4.0), (2, 4.0)], 3) == [(0, 1.0), (1, 4.5 / 1.5), (2, 6.25 / 1.75)]
    assert fmean(value for _, value in smooth([(step, 2.0) for step in range(50)], 10)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.6338, "0.634"),
        (12.34, "12.3"),
        (1404.2, "1,404"),
        (3.1e-6, "3.1×10⁻⁶"),
        (1e-4, "10⁻⁴"),
        (-0.02, "−0.0200"),
        (0, "0"),
    ],
)
def test_numbers_read_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


def test_signs_and_durations() -> None:
    assert [signed(value) for value in (0.125, -0.25, 0.0001, -0.0001)] == ["+0.125", "−0.250", "0.000", "0.000"]
    assert [duration(s) for s in (0.042, 7.25, 59.6, 318, 7500)] == [
        "0.042 s",
        "7.2 s",
        "1 min 00 s",
        "5 min 18 s",
        "2 h 05 min",
    ]


def test_only_markup_passes_unescaped() -> None:
    assert tag("p", "<b>", Markup("<i>x</i>"), title='"') == '<p title="&quot;">&lt;b&gt;<i>x</i></p>'


def test_supports_are_shown_with_the_boxes_that_the_prompt_gives() -> None:
    sample = episode(1)
    query, support = images_of([sample])(sample.id)
    (box,) = (part.box for part in sample.prompt if isinstance(part, SupportBoxPart))
    scale = support.height / sample.images[0].height
    assert query.size == (sample.images[1].width, sample.images[1].height)
    assert support.getpixel((round(box.x2 * scale), round(box.center[1] * scale))) == SUPPORT

"""Pictures of evaluated samples: every image of the prompt in its order, supports with their boxes, truth and answer.

    [ support 1 ▭ ] [ support 2 ▭ ] … [ query: truth ▭ green, answer ▭ red ]

Chosen by rule: the places are dealt out to the rows in turn, and taken within a row at evenly spaced ranks of IoU.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage

from data.sample import Sample
from rl.evaluation_results import Row
from rl.report.boxes import HEIGHT, draw_boxes, support_boxes
from rl.report.gallery import spread
from rl.runlog import ValidationRecord

FOLDER = "pictures"
GAP = 6
TRUTH, ANSWER = (20, 160, 70), (220, 40, 40)


@dataclass(frozen=True)
class Picture:
    """A picture file, relative to the evaluation's folder, and what it shows."""

    file: str
    caption: str


def choose(rows: Sequence[Row], count: int) -> list[tuple[Row, int]]:
    """Rows, and the indices of their records to draw; best IoU first within a row."""
    answered = [row for row in rows if row.records]
    chosen = []
    for number, row in enumerate(answered):
        share = count // len(answered) + (number < count % len(answered))
        ranked = sorted(range(len(row.records)), key=lambda at: (-row.records[at].iou, row.records[at].id))
        chosen += [(row, at) for at in spread(ranked, min(share, len(ranked)))]
    return chosen


def draw(sample: Sample, record: ValidationRecord) -> PILImage.Image:
    """One picture: the sample's images side by side at one height."""
    boxes = support_boxes(sample)
    boxes[sample.target_image].append((record.target, TRUTH))
    if record.prediction is not None:
        boxes[sample.target_image].append((record.prediction, ANSWER))
    panels = [_at_height(draw_boxes(image.open(), boxes[index])) for index, image in enumerate(sample.images)]
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    picture = PILImage.new("RGB", (width, HEIGHT), (255, 255, 255))
    at = 0
    for panel in panels:
        picture.paste(panel, (at, 0))
        at += panel.width + GAP
    return picture


def _at_height(image: PILImage.Image) -> PILImage.Image:
    width = max(1, round(image.width * HEIGHT / image.height))
    return image.resize((width, HEIGHT), PILImage.Resampling.LANCZOS)


def write_pictures(rows: Sequence[Row], count: int, out: Path) -> list[Picture]:
    """Draw `count` samples into OUT/pictures, all of them or none."""
    partial, folder = out / f".{FOLDER}.partial", out / FOLDER
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pictures = []
    for number, (row, at) in enumerate(choose(rows, count)):
        record = row.records[at]
        name = re.sub(r"[^\w.-]+", "_", f"{number:02d}-{row.asked.title}-{record.id}")[:100] + ".png"
        draw(row.asked[row.places[at]], record).save(partial / name)
        verdict = "no box" if record.prediction is None else f"IoU {record.iou:.2f}"
        pictures.append(Picture(f"{FOLDER}/{name}", f"{row.asked.title} · {record.id} · {verdict}"))
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return pictures

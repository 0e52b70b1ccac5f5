"""The LOCUS reward once more, for the other environment: 0.9 · IoU + 0.1 · format. A test holds it to `rewards.locus`.

Standard library only, and nothing of the project's.
"""

from __future__ import annotations

import math
import re

_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?"
_TEXT = re.compile(r"(<think>(.*?)</think>\s*)?<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

Corners = tuple[float, float, float, float]


def locus_reward(text: str, target: Corners, size: tuple[int, int]) -> float:
    """`target` and the answer's box are in pixels of an image of `size` (width, height)."""
    matched = _TEXT.fullmatch(text.strip())
    if matched is None or any(text.count(tag) > 1 for tag in _TAGS):
        return 0.0
    thought, answer = matched[2], matched[3]
    if thought is None and any(tag in text for tag in _TAGS[:2]):
        return 0.0
    form = 0.0 if matched[1] is None else 1.0
    return 0.9 * _iou(_box(answer), target, size) + 0.1 * form


def _box(answer: str) -> Corners | None:
    matched = _BOX.fullmatch(answer.strip())
    if matched is None:
        return None
    x1, y1, x2, y2 = (float(number) for number in matched.groups())
    return (x1, y1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) and x2 > x1 and y2 > y1 else None


def _iou(box: Corners | None, target: Corners, size: tuple[int, int]) -> float:
    if box is None:
        return 0.0
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (_clip(each, size) for each in (box, target))
    overlap = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    return overlap / union


def _clip(box: Corners, size: tuple[int, int]) -> Corners:
    width, height = size
    x1, y1, x2, y2 = box
    return (min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height))

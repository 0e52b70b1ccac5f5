"""Rewards as users write them, good and bad: for the registry, the pool and the checker."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data.sample import Sample
from rewards.iou import box_iou
from rewards.score import Completion, Score

NOT_A_FUNCTION = 3.0
unpicklable = lambda sample, completion: Score(box_iou(sample, completion))  # noqa: E731


def length(sample: Sample, completion: Completion, *, scale: float = 1.0) -> float:
    return scale * len(completion.text)


def parts(sample: Sample, completion: Completion) -> Score:
    return Score(1.0, parts={"sample": float(len(sample.images)), "pid": float(os.getpid())})


def by_text(sample: Sample, completion: Completion) -> Any:
    """Does what the text says: every way in which a call can go wrong."""
    match completion.text:
        case "raise":
            raise KeyError("no such category")
        case "exit":
            sys.exit(7)
        case "crash":
            os._exit(3)
        case "loop":
            while True:
                pass
        case "sleep":
            time.sleep(3600)
        case "backtrack":
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "nan":
            return float("nan")
        case "text":
            return "good"
        case "recurse":
            return by_text(sample, completion)
        case spawn if spawn.startswith("spawn "):
            child = subprocess.Popen(["sleep", "3600"])
            Path(spawn.removeprefix("spawn ")).write_text(str(child.pid))
            while True:
                pass
    return 0.5


def random_score(sample: Sample, completion: Completion) -> float:
    return random.random()


def constant(sample: Sample, completion: Completion) -> float:
    return 1.0


def brittle(sample: Sample, completion: Completion) -> float:
    """Reads the box the way most first rewards do."""
    numbers = completion.text.split("<answer>[")[1].split("]")[0].split(",")
    return float(numbers[0])


def too_few(sample: Sample) -> float:
    return 0.0


async def asynchronous(sample: Sample, completion: Completion) -> float:
    return 0.0

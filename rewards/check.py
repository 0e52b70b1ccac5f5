"""Tries a reward on hostile completions before a run does: `python -m rewards.check module:function`.

    python -m rewards.check locus
    python -m rewards.check my_rewards:near_and_brief --kwargs '{"limit": 200}'

It runs the reward where a run would, in the killable processes of a RewardPool, on some hundred texts that models really
emit (rewards.hostile) plus right and wrong answers, and prints a table. A violation ends it with exit code 1:

    failure       it raised, returned something else than a finite Score or float, or took its process down
    timeout       one call took longer than --timeout
    unstable      the same sample and text scored otherwise a second time, or in another process
    unpicklable   the function is not importable by its own name, so other processes cannot be handed it
    flat          a right answer scores no more than every wrong one
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from data.box import Box, Frame
from data.sample import EncodedImage, ImagePart, Sample, TextPart
from rewards.config import RewardConfig
from rewards.hostile import Case, hostile_completions
from rewards.pool import RewardPool
from rewards.registry import RewardLookupError, resolve
from rewards.score import Completion, RewardFailure, Score
from rewards.worker import Pair

_BATCH = 16
_MOST_TIMEOUTS = 3
_SHOWN_PER_VIOLATION = 3
RIGHT = "right answers"

_REMEDIES = {
    "failure": "Return a low score for a text you cannot read; raise only when the sample itself is broken.",
    "timeout": "Bound the work: no unbounded loop, no backtracking regular expression, no network.",
    "unstable": "Use nothing but the arguments: no clock, no unseeded randomness, no global state, no order of a set.",
    "unpicklable": "Define it with `def` (or a class) at the top level of an importable module.",
    "flat": "GRPO learns from differences: let the right box score more than the wrong ones.",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule the reward broke, and the text (or the reason) that shows it."""

    rule: str
    evidence: str


@dataclass
class Report:
    """What the checker saw: verdicts by kind of completion, seconds by kind, and the violations."""

    verdicts: dict[str, list[Score | RewardFailure]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    calls_per_second: float | None = None

    def totals(self, kind: str | None = None) -> list[float]:
        """Every score's total, of one kind or of all."""
        kinds = self.verdicts if kind is None else [kind]
        return [verdict.total for key in kinds for verdict in self.verdicts[key] if isinstance(verdict, Score)]


def example_sample() -> Sample:
    """A cue-search question on a blank 640×480 scene with one distractor."""
    encoded = io.BytesIO()
    Image.new("RGB", (640, 480), "gray").save(encoded, "PNG")
    crop = io.BytesIO()
    Image.new("RGB", (100, 80), "gray").save(crop, "PNG")
    frame = Frame.original(640, 480)
    return Sample(
        id="check-0",
        source="check",
        images=(EncodedImage(640, 480, encoded=encoded.getvalue()), EncodedImage(100, 80, encoded=crop.getvalue())),
        prompt=(ImagePart(0), ImagePart(1), TextPart("Please find where Image 2 is located in Image 1.")),
        target=Box(320, 240, 420, 320, frame),
        distractors=(Box(32, 24, 132, 104, frame),),
        metadata={"category": "mug", "area_bin": "small"},
    )


def right_answers(sample: Sample, frame: Frame) -> list[Case]:
    """The target itself, in the forms that the two recipes ask for."""
    box = list(sample.target.to(frame).rounded())
    answer = f"<answer>{box}</answer>"
    return [Case(RIGHT, answer), Case(RIGHT, f"<think>The handle is over there.</think>{answer}")]


def check(config: RewardConfig) -> Report:
    """Run every check on the config's reward. Raises RewardLookupError when there is no such reward."""
    report = Report()
    _check_pickle(config, report)
    sample = example_sample()
    frames = (Frame.resized(644, 476), Frame.thousandths())
    cases = [(case, frame) for frame in frames for case in right_answers(sample, frame)]
    cases += [(case, frames[index % 2]) for index, case in enumerate(hostile_completions())]
    pairs = [(sample, Completion(case.text, frame)) for case, frame in cases]
    with RewardPool(config) as pool:
        first = _timed_pass(pool, [case.kind for case, _ in cases], pairs, report)
        if first is None:
            return report
        again = pool.score(pairs[::-1])[::-1]
        report.calls_per_second = _speed(pool, pairs[0])
    with RewardPool(config) as another:
        elsewhere = another.score(pairs)
    for pair, *verdicts in zip(pairs, first, again, elsewhere, strict=True):
        _check_verdicts(pair, verdicts, report)
    _check_order(report)
    return report


def _check_pickle(config: RewardConfig, report: Report) -> None:
    try:
        pickle.loads(pickle.dumps(resolve(config.name, config.kwargs)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        report.violations.append(Violation("unpicklable", str(error)))


def _timed_pass(
    pool: RewardPool, kinds: Sequence[str], pairs: Sequence[Pair], report: Report
) -> list[Score | RewardFailure] | None:
    """Verdicts of all pairs, in small batches of one kind; None when too many calls hang for the rest to be worth it."""
    pool.score(pairs[:1])
    verdicts: list[Score | RewardFailure] = []
    timeouts = 0
    while len(verdicts) < len(pairs):
        start = len(verdicts)
        kind = kinds[start]
        stop = next(
            (i for i in range(start, min(start + _BATCH, len(pairs))) if kinds[i] != kind), min(start + _BATCH, len(pairs))
        )
        began = time.perf_counter()
        batch = pool.score(pairs[start:stop])
        report.seconds[kind] = report.seconds.get(kind, 0.0) + time.perf_counter() - began
        report.verdicts.setdefault(kind, []).extend(batch)
        verdicts += batch
        hung = [pair for pair, verdict in zip(pairs[start:stop], batch, strict=True) if _is_timeout(verdict)]
        report.violations += [Violation("timeout", _excerpt(pair)) for pair in hung]
        timeouts += len(hung)
        if timeouts >= _MOST_TIMEOUTS:
            return None
    return verdicts


def _speed(pool: RewardPool, pair: Pair, calls: int = 2000) -> float:
    """Calls a second of one worker on a well-formed answer, transport included."""
    began = time.perf_counter()
    pool.score([pair] * 20)
    per_call = (time.perf_counter() - began) / 20
    calls = max(1, min(calls, int(5.0 / per_call)))
    began = time.perf_counter()
    pool.score([pair] * calls)
    return calls / (time.perf_counter() - began)


def _check_verdicts(pair: Pair, verdicts: Sequence[Score | RewardFailure], report: Report) -> None:
    failures = [verdict for verdict in verdicts if isinstance(verdict, RewardFailure) and not _is_timeout(verdict)]
    if failures:
        report.violations.append(Violation("failure", f"{failures[0].reason}  ←  {_excerpt(pair)}"))
    elif any(_is_timeout(verdict) for verdict in verdicts):
        return
    elif any(verdict != verdicts[0] for verdict in verdicts):
        scores = ", ".join(f"{verdict.total:g}" for verdict in verdicts if isinstance(verdict, Score))
        report.violations.append(Violation("unstable", f"{scores}  ←  {_excerpt(pair)}"))


def _check_order(report: Report) -> None:
    right = report.totals(RIGHT)
    wrong = [total for kind in report.verdicts if kind != RIGHT for total in report.totals(kind)]
    if right and wrong and max(right) <= max(wrong):
        report.violations.append(
            Violation("flat", f"right answers score at most {max(right):g}, others up to {max(wrong):g}")
        )


def _is_timeout(verdict: Score | RewardFailure) -> bool:
    return isinstance(verdict, RewardFailure) and verdict.reason.startswith("timed out")


def _excerpt(pair: Pair) -> str:
    text = pair[1].text
    return ascii(text) if len(text) <= 80 else f"{text[:60]!a}… ({len(text):,} characters)"


def print_report(name: str, report: Report, console: Console) -> None:
    """The table of kinds, the summary, and every broken rule with what to do about it."""
    table = Table(title=f"reward {name}")
    for column in ("completions", "count", "min", "mean", "max", "failed", "ms a call"):
        table.add_column(column, justify="left" if column == "completions" else "right")
    for kind, verdicts in report.verdicts.items():
        totals = report.totals(kind)
        spread = [f"{value:.3f}" for value in (min(totals), sum(totals) / len(totals), max(totals))] if totals else ["–"] * 3
        failed, milliseconds = len(verdicts) - len(totals), 1000 * report.seconds[kind] / len(verdicts)
        table.add_row(kind, str(len(verdicts)), *spread, str(failed), f"{milliseconds:.3f}")
    console.print(table)
    totals = report.totals()
    if totals:
        console.print(f"range [{min(totals):g}, {max(totals):g}]", highlight=False, markup=False)
    if report.calls_per_second is not None:
        console.print(f"speed {report.calls_per_second:,.0f} calls/s on one worker", highlight=False)
    for rule, remedy in _REMEDIES.items():
        seen = [violation.evidence for violation in report.violations if violation.rule == rule]
        if seen:
            console.print(f"{rule}: {len(seen)}. {remedy}", highlight=False, markup=False)
            for evidence in seen[:_SHOWN_PER_VIOLATION]:
                console.print(f"    {evidence}", highlight=False, markup=False)
    console.print("no violation" if not report.violations else f"{len(report.violations)} violations", highlight=False)


def _kwargs(text: str) -> Mapping[str, Any]:
    parsed = json.loads(text)
    if not isinstance(parsed, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object such as {{"alpha": 0.2}}, got {text}')
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reward", help="a registered name, or package.module:function")
    parser.add_argument("--kwargs", type=_kwargs, default={}, help='keyword arguments as JSON, e.g. {"alpha": 0.2}')
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds a call may take (default 2)")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        report = check(RewardConfig(name=options.reward, kwargs=dict(options.kwargs), timeout_s=options.timeout))
    except RewardLookupError as error:
        console.print(str(error), highlight=False, markup=False)
        return 1
    print_report(options.reward, report, console)
    return 1 if report.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())

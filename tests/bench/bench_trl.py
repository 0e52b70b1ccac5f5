"""GRPO samples a second against TRL's GRPOTrainer: same model, prompts, answers, KL and cores, turn and turn about.

    python -m tests.bench.bench_trl [--shapes tiny image1000] [--rounds 5] [--turn 6] [--trl-env KEY=VALUE …] [--json]
    python -m tests.bench.bench_trl --reward [--steps 150] [--seeds 0 1 2]

Both programs are started on the same two cores and wait on a pipe; each is granted some steps, then the other: what else
the machine does meets both. A turn's seconds are the program's own wall-clock from its grant to the end of its last step,
everything in it. Answers have a fixed length on both sides: the model folder's end token is one that neither may sample.
TRL generates with transformers; its environment is made where it is missing (tests/bench/trl/install.py). Its threads spin
while they wait, PyTorch's own default, which is very slow beside other work: measure on a quiet
machine, or try `--trl-env OMP_WAIT_POLICY=PASSIVE`. Between its turns the project's Ray takes some percent of a core, so
TRL has a turn before the project is started, too, and the faster of its speeds counts.

`--reward` trains the demo's task from the demo's checkpoint with both, answers ending where the model ends them, and
compares the mean reward of the last tenth of the steps, by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from cluster.install import InstallError
from tests.bench.rows import Row, Spread, ratio_of, table_of
from tests.bench.trl.install import install
from tests.bench.trl.task import Shape, overrides, write_task

NAME = "GRPO against TRL"
CORES = 2
SILENT_S = 900.0
WARM_UP_STEPS = 2
SHAPES = {
    "tiny": Shape("16 prompts × 8 answers × 32 tokens, 112-px scenes", 16, 8, 32),
    "image1000": Shape("4 prompts × 8 answers × 32 tokens, 1,024 image tokens", 4, 8, 32, image_side=896),
}
DEMO = Shape("the demo's task", 16, 8, 40, ends=True)
TURNS = {"tiny": 6, "image1000": 1}  # steps
TARGETS = {"tiny": "1.3", "image1000": "3"}
TRL_ENVIRONMENT = {"OMP_NUM_THREADS": str(CORES), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
DRIVER = Path(__file__).parent / "trl" / "driver.py"


class SideError(RuntimeError):
    """One of the two programs ended, or said nothing for too long; the message ends with what it printed."""


@dataclass(frozen=True)
class Side:
    """A started program that waits for its turn."""

    name: str
    process: subprocess.Popen[bytes]
    pipe: Connection
    log: Path

    def ready(self) -> None:
        self._hear()

    def take(self, steps: int) -> float:
        """Grant `steps` and wait for them; their seconds."""
        self.pipe.send(steps)
        seconds = self._hear()
        assert isinstance(seconds, float)
        return seconds

    def rewards(self) -> list[float]:
        """After the last step: the mean reward of every step."""
        rewards = self._hear()
        assert isinstance(rewards, list)
        return rewards

    def _hear(self) -> object:
        try:
            if self.pipe.poll(SILENT_S):
                return self.pipe.recv()
        except EOFError:
            self.process.wait(SILENT_S)
        state = "says nothing" if self.process.poll() is None else f"ended with {self.process.returncode}"
        raise SideError(f"{self.name} {state}:\n{self.log.read_text(errors='replace')[-2000:]}")


@contextmanager
def started(name: str, command: Callable[[int], list[str]], env: dict[str, str], folder: Path) -> Iterator[Side]:
    """The program on the first CORES cores that this process may use; it has ended when the block has."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    log = folder / f"{name}.log"
    mine, its = Pipe()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command(its.fileno()),
            stdout=out,
            stderr=out,
            env=env,
            pass_fds=[its.fileno()],
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    its.close()
    try:
        yield Side(name, process, mine, log)
        process.wait(SILENT_S)
    finally:
        mine.close()
        if process.poll() is None:
            process.terminate()
            process.wait(SILENT_S)


@contextmanager
def both(
    folder: Path, python: Path, shape: Shape, steps: int, seed: int, alone_steps: int = 0
) -> Iterator[tuple[Side, Side, float | None]]:
    """(the project, TRL), ready for their first turn, and TRL's samples a second in `alone_steps` of its own before that."""
    write_task(folder, shape, steps + (WARM_UP_STEPS + alone_steps if alone_steps else 0), seed)
    settings = overrides(folder, shape, steps, seed)
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "PYTHON"))}

    def ours(descriptor: int) -> list[str]:
        return [sys.executable, "-m", "tests.bench.trl.ours", str(descriptor), *settings]

    def trl(descriptor: int) -> list[str]:
        return [str(python), str(DRIVER), str(folder), str(descriptor)]

    # One after the other: programs that load side by side would only slow each other.
    with started("TRL", trl, alone | TRL_ENVIRONMENT, folder) as rival:
        rival.ready()
        speed = None
        if alone_steps:
            rival.take(WARM_UP_STEPS)
            speed = alone_steps * shape.samples / rival.take(alone_steps)
        with started("Sightline", ours, dict(os.environ), folder) as project:
            project.ready()
            yield project, rival, speed


def speeds(python: Path, shape: Shape, rounds: int, turn: int) -> tuple[list[float], list[float], float]:
    """Samples a second, round by round: the project's, and TRL's; and TRL's with no other program beside it."""
    taken: tuple[list[float], list[float]] = ([], [])
    steps = WARM_UP_STEPS + rounds * turn + 1  # after the last one a program saves, which is no step
    with tempfile.TemporaryDirectory() as folder, both(Path(folder), python, shape, steps, 0, turn) as (*sides, alone):
        for side in sides:
            side.take(WARM_UP_STEPS)
        for number in range(rounds):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                taken[which].append(turn * shape.samples / sides[which].take(turn))
        for side in sides:
            side.take(1)
            side.rewards()
    assert alone is not None
    return *taken, alone


def row_of(key: str, ours: Sequence[float], theirs: Sequence[float], alone: float, turn: int) -> Row:
    """The ratio is to the faster TRL: in its turns, in which the project waits beside it, or alone."""
    ratio = ratio_of(ours, theirs)
    if alone > statistics.median(theirs):
        ratio = Spread.of(speed / alone for speed in ours)
    return Row(
        name=f"samples/s, {SHAPES[key].name}",
        value=statistics.median(ours),
        unit="samples/s",
        floor=f"TRL: {statistics.median(theirs):.4g} samples/s",
        ratio=ratio.median,
        how=f"{len(ours)} turns of {turn} steps each, {CORES} cores; TRL alone {alone:.4g}; target {TARGETS[key]}",
        low=ratio.low,
        high=ratio.high,
    )


def rows(quick: bool) -> list[Row]:
    return measure(list(SHAPES), 3 if quick else 5)


def measure(shapes: Sequence[str], rounds: int, turn: int | None = None, rows_per_forward: int | None = None) -> list[Row]:
    """A row a shape; one that says why where TRL cannot be installed."""
    try:
        python = install()
    except InstallError as error:
        return [Row.missing(f"samples/s, {SHAPES[key].name}", f"no TRL: {error}".splitlines()[0]) for key in shapes]
    found = []
    for key in shapes:
        steps = turn or TURNS[key]
        shape = SHAPES[key] if rows_per_forward is None else replace(SHAPES[key], rows_per_forward=rows_per_forward)
        found.append(row_of(key, *speeds(python, shape, rounds, steps), steps))
    return found


def final_rewards(python: Path, steps: int, seed: int) -> tuple[float, float]:
    """Mean reward of the last tenth of the steps: the project's, and TRL's."""
    with tempfile.TemporaryDirectory() as folder, both(Path(folder), python, DEMO, steps, seed) as (*sides, _):
        for side in sides:
            side.take(steps)
        found = [side.rewards() for side in sides]
    last = max(1, steps // 10)
    ours, theirs = (statistics.fmean(rewards[-last:]) for rewards in found)
    return ours, theirs


def reward_row(steps: int, seeds: Sequence[int]) -> Row:
    """The gap of the final rewards beside what seeds alone make of it."""
    pairs = [final_rewards(install(), steps, seed) for seed in seeds]
    ours, theirs = (Spread.of(values) for values in zip(*pairs, strict=True))
    return Row(
        name=f"mean reward after {steps} steps of the demo's task",
        value=ours.median,
        unit=f"({ours.low:.3f} – {ours.high:.3f})",
        floor=f"TRL: {theirs.median:.3f} ({theirs.low:.3f} – {theirs.high:.3f})",
        ratio=ours.median / theirs.median,
        how=f"seeds {', '.join(map(str, seeds))}; same checkpoint, prompts and reward, last tenth of the steps",
        kept=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=int, help=f"steps a turn; default {TURNS}")
    parser.add_argument("--rows-per-forward", type=int, help="of TRL; default the whole batch, at most 128")
    parser.add_argument("--trl-env", nargs="+", default=[], metavar="KEY=VALUE", help="added to TRL's environment")
    parser.add_argument("--reward", action="store_true", help="compare final rewards instead of speed")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    TRL_ENVIRONMENT.update(pair.split("=", 1) for pair in arguments.trl_env)
    if arguments.reward:
        found = [reward_row(arguments.steps, arguments.seeds)]
    else:
        found = measure(arguments.shapes, arguments.rounds, arguments.turn, arguments.rows_per_forward)
    if arguments.json:
        print(json.dumps([asdict(row) for row in found]))
    else:
        Console(width=160).print(table_of({NAME: found}, "GRPO, both on the same cores, turn and turn about"))


if __name__ == "__main__":
    main()

"""Evaluates a model on held-out data: `python -m rl.evaluate RECIPE.yaml [checkpoint=…] [shots=1,2,4] [key=value …]`.

    datasets ─► sets by shots ─► backend (vllm | hf) ─► boxes, IoU ─► metrics with intervals ─► json, table, pictures

Exit status: 0 done, 1 failed with a message or a whole set without an answer, 2 a recipe or an option that cannot run,
130 interrupted.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl import evaluation_options
from rl.commands import configured
from rl.config import LoraConfig, ModelConfig, Recipe, load_recipe
from rl.evaluation_options import BACKENDS, EvaluationOptions, parse_options

if TYPE_CHECKING:
    from data.sample import Sample
    from rewards.score import Completion
    from rl.evaluation import Answerer
    from rl.evaluation_results import Results, Row, Subject
    from rl.evaluation_sets import EvaluationSet
    from rl.policy_folder import PolicyFolder
    from rl.records import Sampling

USAGE = "usage: python -m rl.evaluate RECIPE.yaml [checkpoint=…] [shots=1,2,4] [backend=vllm|hf] [key=value …]"
CHUNK = 512  # samples asked at once: their encoded images are in memory together

Complete = Callable[["Sample", str], "Completion"]
Open = Callable[[Recipe, ModelConfig, int], AbstractContextManager["Answerer"]]


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}\n\n{evaluation_options.__doc__}")
        return 0 if argv else 2
    read = configured(lambda: _read(argv))
    if isinstance(read, int):
        return read
    recipe, options = read
    return run_evaluation(recipe, options)


def _read(argv: Sequence[str]) -> tuple[Recipe, EvaluationOptions]:
    options, overrides = parse_options(argv[1:])
    return load_recipe(argv[0], overrides), options


def run_evaluation(recipe: Recipe, options: EvaluationOptions) -> int:
    """Evaluate, write everything into the output folder, show the table."""
    from rich.console import Console

    expected = _expected()
    try:
        results = evaluate_recipe(recipe, options)
        out = Path(options.out) if options.out else Path(recipe.runs) / recipe.name / "evaluate" / _now()
        _write(results, options, out)
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    except expected as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    from rl.evaluation_report import console_table

    table, console = console_table(results), Console()
    # A figure that is cut is worse than a line that the terminal breaks.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)
    print(f"evaluation: {out}")
    for row in results.unanswered:
        print(f"{row.asked.title}: none of {len(row.failures)} samples was answered: {row.reasons}", file=sys.stderr)
    return 1 if results.unanswered else 0


def _now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def _expected() -> tuple[type[BaseException], ...]:
    """Errors whose message is all a user needs; anything else shows its traceback."""
    from cluster.group import ActorError
    from cluster.placement import PlacementError
    from cluster.preflight import PreflightError

    return (ActorError, PlacementError, PreflightError, ValueError, OSError)


def evaluate_recipe(recipe: Recipe, options: EvaluationOptions) -> Results:
    """All sets of the recipe's or the options' datasets, asked of one model."""
    from data.tiny_sets import make_missing
    from rl.evaluation_results import Results
    from rl.evaluation_sets import evaluation_sets
    from rl.policy_folder import policy_folder
    from rl.prompting import PromptEncoder

    started = time.monotonic()
    folders = options.datasets.items() or [(None, recipe.data.validation)]
    if recipe.data.synthetic:
        make_missing(recipe.data.synthetic, [Path(place) for _, place in folders])
    sets = evaluation_sets(list(folders), options.split, options.shots, options.samples)
    policy = policy_folder(options.checkpoint, recipe)
    # An export has its adapters merged in, and a quantized base dequantized.
    model = replace(recipe.model, path=policy.path, lora=LoraConfig(), quantization=None)
    encoder = PromptEncoder.of(model)
    subject = _subject(recipe, options, policy, encoder)
    with _backend(options.backend)(recipe, model, max(one.max_images for one in sets)) as answerer:
        rows = tuple(ask(answerer, one, encoder.completion, subject.sampling, subject.mode) for one in sets)
    return Results(subject, rows, seconds=time.monotonic() - started)


def _backend(name: str) -> Open:
    module, _, attribute = BACKENDS[name].partition(":")
    opened: Open = getattr(import_module(module), attribute)
    return opened


def _subject(recipe: Recipe, options: EvaluationOptions, policy: PolicyFolder, encoder: Any) -> Subject:
    from rl.evaluation_results import Subject
    from rl.records import Sampling

    greedy = Sampling(1, 0.0, 1.0, recipe.rollout.max_tokens, recipe.seed)
    sampled = replace(greedy, temperature=recipe.validation.temperature, top_p=recipe.validation.top_p)
    limits = encoder.limits
    return Subject(
        recipe=recipe.name,
        checkpoint=options.checkpoint,
        policy=policy,
        backend=options.backend,
        sampling={"greedy": greedy, "sampled": sampled}[options.sampling],
        mode=options.sampling,
        seed=recipe.seed,
        paper=_paper_key(policy.path) if options.paper is None else options.paper,
        settings={
            "dtype": recipe.rollout.dtype,
            "max_tokens": recipe.rollout.max_tokens,
            "max_model_len": recipe.rollout.max_model_len,
            "min_pixels": limits and limits.min_pixels,
            "max_pixels": limits and limits.max_pixels,
            "split": options.split,
        },
    )


def _paper_key(model_path: str) -> str | None:
    from transformers import AutoConfig

    from rl.paper_results import paper_key

    config = AutoConfig.from_pretrained(model_path)
    return paper_key(config.model_type, config.get_text_config().hidden_size)


def ask(answerer: Answerer, asked: EvaluationSet, complete: Complete, sampling: Sampling, mode: str) -> Row:
    """Answer and judge one set, chunk by chunk."""
    from rl.evaluation import judged_record
    from rl.evaluation_metrics import measure
    from rl.evaluation_results import Failure, Row
    from rl.records import RolloutFailure

    places, records, failures = [], [], []
    for start in range(0, len(asked), CHUNK):
        samples = asked[start : start + CHUNK]
        for place, (sample, (answer, *_)) in enumerate(
            zip(samples, answerer.generate(samples, sampling), strict=True), start=start
        ):
            if isinstance(answer, RolloutFailure):
                failures.append(Failure(sample.id, answer.reason))
                continue
            try:
                record = judged_record(sample, complete(sample, answer.text), mode)
            except ValueError as error:
                failures.append(Failure(sample.id, str(error)))
                continue
            places.append(place)
            records.append(record)
        print(f"{asked.title}: {start + len(samples)} of {len(asked)} samples", flush=True)
    measured = measure(records, sampling.seed or 0, asked.dataset, asked.shots)
    return Row(asked, tuple(places), tuple(records), tuple(failures), measured)


def _write(results: Results, options: EvaluationOptions, out: Path) -> None:
    from rl.evaluation_pictures import write_pictures
    from rl.evaluation_report import write_results

    write_results(results, write_pictures(results.rows, options.pictures, out), out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Where a model looks when it answers: `python -m rl.analyze RECIPE.yaml [checkpoint=…] [option=value …] [key=value …]`.

    checkpoint=PATH           an exported model folder, a run's folder or a checkpoint of one; absent: the recipe's model
    out=DIR                   folder to write: analysis.json, split.svg, heatmaps/; absent: runs/<recipe>/analyze/<time>
    samples=32                how many of the recipe's validation samples; null: all
    answer=own|truth          whose tokens' attention is read: the model's own greedy answer, or the true one
    category=out|in|both      the prompt without the category's name, with it, or both beside each other
    heatmaps=8                how many samples are drawn
    layers=[0,1,2,3,4]        whose mean is drawn (default: all); each_layer=true draws every one
    images=query|all          which images of a sample are drawn
    normalize=peak|minmax     of each picture; shared=true: of all pictures alike; peak=0.01: a given peak

Anything else is an override of the recipe (data.validation=…, model.max_pixels=…).
Exit status: 0 done, 1 failed with a message, 2 an option, a recipe or an override that cannot run, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rl.analysis.config import AnalysisConfig, parse_options
from rl.commands import configured
from rl.config import LoraConfig, Recipe, load_recipe

if TYPE_CHECKING:
    from data.sample import Sample
    from rl.analysis.answers import Reader

USAGE = "usage: python -m rl.analyze RECIPE.yaml [checkpoint=…] [option=value …] [key=value …]"

ANNOUNCE_EVERY = 16


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}")
        return 0 if argv else 2
    read = configured(lambda: _read(argv))
    if isinstance(read, int):
        return read
    recipe, options = read
    try:
        analyze(recipe, options)
    except KeyboardInterrupt:
        print("Stopped; nothing is written.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _read(argv: Sequence[str]) -> tuple[Recipe, AnalysisConfig]:
    options, overrides = parse_options(argv[1:])
    return load_recipe(argv[0], overrides), options


def analyze(recipe: Recipe, options: AnalysisConfig) -> None:
    """Read, ask, write and print. Raises ValueError for what a user can mend."""
    from rich.console import Console

    from rl.analysis.record import check_out, console_table, write_analysis
    from rl.analysis.study import Asked, study
    from rl.analysis.token_classes import PROMPTS

    out = Path(options.out) if options.out else Path(recipe.runs) / recipe.name / "analyze" / time.strftime("%Y%m%d-%H%M%S")
    check_out(out)
    samples = _samples(recipe, options.samples)
    prompts = PROMPTS[options.category]
    for prompt in prompts.values():
        for sample in samples:
            prompt(sample)  # a sample without a category is told before a model is loaded
    reader = _reader(recipe, options.checkpoint)
    _check_layers(options.layers, reader.layers)
    studies = {}
    for name, prompt in prompts.items():
        asked = Asked(prompt, options.answer, options.heatmaps, options.images == "all")
        studies[name] = study(reader, _announced(samples, f"{recipe.name}, category {name}"), asked)
    write_analysis(out, studies, options, recipe.name)
    table, console = console_table(studies, recipe.name), Console()
    # A figure that is cut is worse than a line that the terminal breaks.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)
    print(f"analysis: {out}")


def _samples(recipe: Recipe, wanted: int | None) -> list[Sample]:
    from data.store import SampleStore
    from data.tiny_sets import make_missing

    if recipe.data.synthetic:
        make_missing(recipe.data.synthetic, [Path(recipe.data.validation)])
    store = SampleStore(recipe.data.validation, split="validation")
    return [store[index] for index in range(min(wanted or len(store), len(store)))]


def _announced(samples: Sequence[Sample], title: str) -> Iterator[Sample]:
    """The samples, and a line every so often of how many are done."""
    for done, sample in enumerate(samples, start=1):
        yield sample
        if done % ANNOUNCE_EVERY == 0 or done == len(samples):
            print(f"{title}: {done} of {len(samples)} samples", flush=True)


def _reader(recipe: Recipe, checkpoint: str | None) -> Reader:
    from rl.analysis.answers import Reader
    from rl.hf_rollouts import HfRollouts
    from rl.policy_folder import policy_folder

    # An export has its adapters merged in.
    model = replace(recipe.model, path=policy_folder(checkpoint, recipe).path, lora=LoraConfig())
    rollout = recipe.rollout
    return Reader(HfRollouts(model, rollout.dtype, rollout.max_model_len), rollout.max_tokens)


def _check_layers(wanted: list[int] | None, layers: int) -> None:
    for layer in wanted or ():
        if not 0 <= layer < layers:
            raise ValueError(f"`layers` names layer {layer}; the model has layers 0 to {layers - 1}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Times the encoding of a prompt against the least that its images take, at several sizes, one thread.

    python -m tests.bench.bench_prompts [--seconds 2] [--json]

floor      decode the images (Pillow), resize, rescale and normalise them (torchvision): no text, no patches
processor  the same decoding, then the Hugging Face processor in one call
ours       `PromptEncoder.encode`: ids, parts of the prompt, patches
ids        `PromptEncoder.input_ids`: what sampler and driver ask for, no pixel touched
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform

from data.box import Box
from data.photos import load_photographs
from data.prompts import focus_prompt, locus_prompt
from data.sample import EncodedImage, ImagePart, Sample
from rl.prompting import PromptEncoder
from rl.tiny_backbone import write
from tests.bench.rows import Row

NAME = "Encoding a prompt"
UNIT = 28 * 28


@dataclass(frozen=True)
class Case:
    """Images of a prompt; `max_tokens` an image."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    max_tokens: int


CASES = (
    Case("LOCUS, the tiny recipe", ((112, 112), (42, 42)), 16),
    Case("LOCUS, 1,000 tokens", ((1024, 768), (84, 84)), 1280),
    Case("LOCUS, 5,000 tokens", ((2304, 1728), (84, 84)), 16384),
    Case("FOCUS, 4 shots, 5 × 1,000 tokens", ((1280, 720),) * 5, 1000),
)


def case_sample(case: Case, number: int) -> Sample:
    """Photographs as JPEG, different for every number."""
    photographs = load_photographs("train")
    images = []
    for place, size in enumerate(case.sizes):
        file = io.BytesIO()
        turned = photographs[(number + place) % len(photographs)].rotate(number % 7)
        turned.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        images.append(EncodedImage(*size, encoded=file.getvalue()))
    target = 0 if len(images) == 2 else len(images) - 1
    box = Box(1, 2, 30, 40, images[target].frame)
    shown = tuple(ImagePart(place) for place in range(len(images)))
    prompt = locus_prompt() if len(images) == 2 else shown
    return Sample(f"{case.name}-{number}", "bench", tuple(images), prompt, box, target_image=target)


def prompted(sample: Sample, turn: int) -> Sample:
    """The sample with its prompt; that of FOCUS has other boxes at every turn, as no two of its prompts are the same."""
    if len(sample.images) == 2:
        return sample
    boxes = tuple(
        Box(turn % 97, turn // 97 % 89, 100 + place, 120, image.frame) for place, image in enumerate(sample.images)
    )
    return replace(sample, prompt=focus_prompt(boxes[:-1]))


def floor(encoder: PromptEncoder, sample: Sample) -> None:
    assert encoder.limits is not None
    processor = encoder.processor.image_processor
    for image in sample.images:
        width, height = encoder.family.resized_size(
            image.width, image.height, encoder.limits.min_pixels, encoder.limits.max_pixels
        )
        pixels = transform.pil_to_tensor(image.open())
        resized = transform.resize(pixels[None], [height, width], InterpolationMode.BICUBIC, antialias=True)
        mean, std = ([255 * value for value in values] for values in (processor.image_mean, processor.image_std))
        transform.normalize(resized.float(), mean, std, inplace=True)


def whole_processor(encoder: PromptEncoder, sample: Sample) -> None:
    images = [image.open() for image in sample.images]
    encoder.processor(text=[encoder.text(sample)], images=[images], return_tensors="pt")


ROWS: dict[str, Callable[[PromptEncoder, Sample], object]] = {
    "floor": floor,
    "processor": whole_processor,
    "ours": lambda encoder, sample: encoder.encode(sample, keep=False),
    "ids": PromptEncoder.input_ids,
}


def measure(seconds: float = 2.0) -> list[dict[str, float | str]]:
    """A row a case: median milliseconds a prompt of each way, taken in turn for `seconds`, and ours over the floor."""
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for case in CASES:
            encoder = PromptEncoder(folder, min_pixels=4 * UNIT, max_pixels=case.max_tokens * UNIT)
            found.append({"case": case.name} | _case(encoder, [case_sample(case, number) for number in range(8)], seconds))
    return found


def _case(encoder: PromptEncoder, samples: list[Sample], seconds: float) -> dict[str, float | str]:
    for row in ROWS.values():
        row(encoder, prompted(samples[0], 0))
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    ends, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < ends:
        for name, row in ROWS.items():
            turn += 1
            sample = prompted(samples[turn % len(samples)], turn)
            began = time.perf_counter()
            row(encoder, sample)
            times[name].append(1e3 * (time.perf_counter() - began))
    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    tokens = encoder.prompt_length(prompted(samples[0], 0))
    return {"prompt_tokens": tokens} | medians | {"ratio": medians["ours_ms"] / medians["floor_ms"]}


def rows(quick: bool) -> list[Row]:
    """Rows of `make bench`."""
    return [
        Row(
            name=str(case["case"]),
            value=float(case["ours_ms"]),
            unit="ms",
            floor=f"decode, resize, normalise {case['floor_ms']:.3g} ms",
            ratio=1.0 / float(case["ratio"]),
            how=f"{case['prompt_tokens']:,} tokens; the processor alone {case['processor_ms']:.3g} ms; one thread, in turn",
        )
        for case in measure(2.0 if quick else 6.0)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="a case (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = measure(arguments.seconds)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    table = Table(title="Encoding a prompt: milliseconds, one thread")
    for column in found[0]:
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in found:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.2f}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()

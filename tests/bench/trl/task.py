"""A GRPO task as files that two programs read: the project as a dataset folder and overrides, TRL as prompts and images.

FOLDER/model/            the tiny model; where answers have a fixed length, with an end token that nobody may sample
       data/             the dataset, for the project            task.json       the numbers, for TRL
       images/           the same images                         prompts.jsonl   in the order in which the project takes them
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cluster.install import detect_device
from data.box import Box
from data.prompts import LOCUS_PROMPT, locus_prompt
from data.sample import EncodedImage, Sample
from data.store import SampleStore
from data.store_writer import write_samples
from data.stream import PromptStream
from data.tiny_sets import make_missing
from rl.demo import RECIPES
from rl.prompting import PromptEncoder

DEMO_DATA = Path("runs/data/locus-tiny")
# Both programs are forbidden to sample it, so that an answer ends where its length says.
NEVER_SAMPLED = "<|video_pad|>"
UNIT = 28
# Large scenes are drawn for so many steps and come again after them.
DISTINCT_STEPS = 4


@dataclass(frozen=True)
class Shape:
    """`image_side` in pixels of a square scene; None: the demo's data. `answer_tokens`: exactly, or with `ends` at most."""

    name: str
    prompts_per_step: int
    generations: int
    answer_tokens: int
    image_side: int | None = None
    ends: bool = False
    rows_per_forward: int = 128

    @property
    def image_tokens(self) -> int | None:
        return None if self.image_side is None else (self.image_side // UNIT) ** 2

    @property
    def samples(self) -> int:
        return self.prompts_per_step * self.generations


@dataclass(frozen=True)
class Task:
    """`task.json`."""

    model: str
    prompts_per_step: int
    generations: int
    answer_tokens: int
    fixed_length: bool
    rows_per_forward: int
    steps: int
    seed: int
    device: str
    banned_token_ids: list[int]
    first_prompt_ids: list[int]
    kl: float = 0.01
    lr: float = 2e-4


def write_task(folder: Path, shape: Shape, steps: int, seed: int) -> None:
    """Everything that both programs need of `steps` steps of `shape`, into the empty `folder`."""
    model = _write_model(folder / "model", shape)
    if shape.image_side is None:
        make_missing("locus", [DEMO_DATA / "train", DEMO_DATA / "held_out"])
        (folder / "data").symlink_to((DEMO_DATA / "train").resolve())
    else:
        samples = [_sample(number, shape.image_side) for number in range(DISTINCT_STEPS * shape.prompts_per_step)]
        write_samples(folder / "data", {"train": samples, "validation": samples[:2]})
    encoder = PromptEncoder(str(model))
    stream = PromptStream(SampleStore(folder / "data", split="train"), seed)
    taken = stream.take(steps * shape.prompts_per_step)
    _write_prompts(folder, taken, encoder)
    task = Task(
        model=str(model),
        prompts_per_step=shape.prompts_per_step,
        generations=shape.generations,
        answer_tokens=shape.answer_tokens,
        fixed_length=not shape.ends,
        rows_per_forward=shape.rows_per_forward,
        steps=steps,
        seed=seed,
        device=detect_device(),
        banned_token_ids=list(encoder.banned_token_ids),
        first_prompt_ids=encoder.input_ids(taken[0]),
    )
    (folder / "task.json").write_text(json.dumps(asdict(task), indent=1))


def overrides(folder: Path, shape: Shape, steps: int, seed: int) -> list[str]:
    """The same task as overrides of recipes/locus/tiny.yaml."""
    held_out = DEMO_DATA / "held_out" if shape.image_side is None else folder / "data"
    room = 256 if shape.image_tokens is None else shape.image_tokens + 256
    return [
        f"model.path={folder / 'model'}",
        f"data.train={folder / 'data'}",
        f"data.validation={held_out}",
        f"runs={folder / 'runs'}",
        f"seed={seed}",
        f"rollout.max_tokens={shape.answer_tokens}",
        f"rollout.max_model_len={room}",
        f"grpo.steps={steps}",
        f"grpo.prompts_per_step={shape.prompts_per_step}",
        f"grpo.prompts_per_update={shape.prompts_per_step}",
        f"grpo.num_generations={shape.generations}",
        *("validation.every=0", "validation.samples=2", "validation.sampled=false"),
        *("checkpoint.every=0", "tracking.sinks=[jsonl]"),
    ]


def _write_model(folder: Path, shape: Shape) -> Path:
    """A copy of the demo's model that takes the shape's images, and does not end an answer of fixed length."""
    shutil.copytree(RECIPES / "tiny_model", folder)
    if shape.image_side is not None:
        processor = _read(folder / "processor_config.json")
        processor["image_processor"]["size"]["longest_edge"] = shape.image_side**2
        _write(folder / "processor_config.json", processor)
    if not shape.ends:
        tokenizer = _read(folder / "tokenizer_config.json")
        generation = _read(folder / "generation_config.json")
        tokenizer["eos_token"] = NEVER_SAMPLED
        generation["eos_token_id"] = [_read(folder / "config.json")["video_token_id"]]
        _write(folder / "tokenizer_config.json", tokenizer)
        _write(folder / "generation_config.json", generation)
    return folder


def _sample(number: int, side: int) -> Sample:
    """A blurred scene of `side` pixels, and a region of it as the cue."""
    rng = np.random.default_rng(number)
    scene = Image.fromarray(rng.integers(0, 255, (side // 16, side // 16, 3), dtype=np.uint8)).resize((side, side))
    left, top = (int(value) for value in rng.integers(0, side - 4 * UNIT, 2))
    corners = (left, top, left + 2 * UNIT, top + 2 * UNIT)
    images = (_encoded(scene), _encoded(scene.crop(corners)))
    return Sample(f"scene-{number}", "bench", images, locus_prompt(), Box(*corners, images[0].frame))


def _encoded(image: Image.Image) -> EncodedImage:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return EncodedImage(*image.size, encoded=buffer.getvalue())


def _write_prompts(folder: Path, samples: list[Sample], encoder: PromptEncoder) -> None:
    (folder / "images").mkdir()
    lines = []
    for sample in samples:
        frame = encoder.answer_frame(sample)
        target = sample.target.to(frame).clip()
        assert target is not None
        names = [_image_file(folder, sample, number) for number in range(len(sample.images))]
        size = [frame.width, frame.height]
        lines.append(json.dumps({"text": LOCUS_PROMPT, "images": names, "target": target.corners, "size": size}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")


def _image_file(folder: Path, sample: Sample, number: int) -> str:
    """Written once, its bytes as the dataset has them."""
    image, name = sample.images[number], f"images/{sample.id.replace('/', '_')}-{number}.png"
    if not (folder / name).exists():
        (folder / name).write_bytes(image.encoded if image.encoded is not None else Path(image.path or "").read_bytes())
    return name


def _read(path: Path) -> dict:  # type: ignore[type-arg]
    return dict(json.loads(path.read_text()))


def _write(path: Path, content: dict) -> None:  # type: ignore[type-arg]
    path.write_text(json.dumps(content, indent=2))

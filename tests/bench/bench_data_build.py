"""Times `python -m data.build locus` against Pillow alone, and measures its memory, on a generated COCO file.

    python -m tests.bench.bench_data_build [--annotations 100000] [--samples 16500] [--workers N] [--json]

floor  decode the same JPEGs and crop the same regions with Pillow, same number of processes, nothing written
cues   the same, and every crop encoded as Pillow's fastest PNG: the cues have to be written
ours   the whole command: read and judge the annotations, choose, decode, crop, scale, encode, write Parquet
read   a sample out of the dataset, in random order, against the decoding of its images, which comes after

The default keeps the paper's share: 99,500 samples of the 604,907 annotations of train2014. Seven boxes an image, 640×480.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from data.parallel import available_cores
from data.photos import load_photographs
from data.store import SampleStore
from tests.bench.rows import Row, ratio_of

NAME = "Building a dataset"
BOXES_PER_IMAGE = 7
SIZE = (640, 480)
# As many different JPEGs are written; the rest are hard links to them, so that generating takes seconds.
DISTINCT_IMAGES = 64
POLL_SECONDS = 0.1
READ_SAMPLES = 300

Crops = tuple[str, list[tuple[int, int, int, int]]]


def write_images(folder: Path, count: int, rng: np.random.Generator) -> list[str]:
    """JPEGs of real photographs at COCO's size and quality."""
    folder.mkdir(parents=True)
    photographs = load_photographs("train")
    names = [f"{index:012d}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        if index < DISTINCT_IMAGES:
            photograph = photographs[index % len(photographs)].rotate(float(rng.uniform(-20, 20))).resize(SIZE)
            photograph.save(folder / name, quality=95)
        else:
            (folder / name).hardlink_to(folder / names[index % DISTINCT_IMAGES])
    return names


def write_annotations(path: Path, names: list[str], annotations: int, rng: np.random.Generator) -> None:
    """Boxes of 0.1–6 % of the image with a polygon each, so that parsing costs what COCO's costs."""
    shares = np.exp(rng.uniform(np.log(0.001), np.log(0.06), annotations))
    sides_N2 = np.sqrt(shares * SIZE[0] * SIZE[1])[:, None] * np.exp(rng.uniform(-0.3, 0.3, annotations))[:, None] ** [1, -1]
    corners_N2 = rng.random((annotations, 2)) * (np.array(SIZE) - sides_N2)
    polygon = np.round(rng.uniform(0, 480, 60), 2).tolist()
    images = [{"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(names)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(80)]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [')
        for i in range(annotations):
            record = {
                "id": i,
                "image_id": i // BOXES_PER_IMAGE,
                "category_id": i % 80,
                "bbox": [*np.round(corners_N2[i], 2).tolist(), *np.round(sides_N2[i], 2).tolist()],
                "iscrowd": 0,
                "segmentation": [polygon],
            }
            file.write((", " if i else "") + json.dumps(record))
        file.write("]}")


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and CPU seconds of this process and its ended children: steadier on a machine with company."""

    seconds: float
    cpu_seconds: float


@contextmanager
def cost() -> Iterator[Callable[[], Cost]]:
    """Gives a function that says what was spent since entering."""
    started, cpu = time.perf_counter(), _cpu_seconds()
    yield lambda: Cost(time.perf_counter() - started, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory(command: list[str]) -> tuple[float, float]:
    """Run it; peak MiB of its main process, and of all its processes together (shared pages counted in each)."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak_main = peak_tree = 0
    while process.poll() is None:
        try:
            main = process.memory_info().rss
            tree = main + sum(child.memory_info().rss for child in process.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
        peak_main, peak_tree = max(peak_main, main), max(peak_tree, tree)
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return peak_main / 2**20, peak_tree / 2**20


def crops_of(dataset: Path) -> list[Crops]:
    """What the build cut, by image."""
    regions: dict[str, list[tuple[int, int, int, int]]] = {}
    for sample in SampleStore(dataset):
        regions.setdefault(str(sample.images[0].path), []).append(sample.target.rounded())
    return list(regions.items())


def decode_and_crop(crops: Crops) -> int:
    path, regions = crops
    with Image.open(path) as image:
        image.load()
        return sum(image.crop(region).size[0] for region in regions)


def decode_and_encode(crops: Crops) -> int:
    path, regions = crops
    file = io.BytesIO()
    with Image.open(path) as image:
        image.load()
        for region in regions:
            image.crop(region).save(file, "PNG", compress_level=1)
    return file.tell()


def all_of(work: Callable[[Crops], int], crops: list[Crops], workers: int) -> Cost:
    """What it costs with so many processes."""
    with cost() as spent:
        if workers == 1:
            for item in crops:
                work(item)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(work, crops, chunksize=16))
        return spent()


def reading(dataset: Path, rng: np.random.Generator) -> tuple[float, float]:
    """CPU milliseconds a sample: to read it, and to decode its images."""
    store = SampleStore(dataset)
    order = rng.permutation(len(store))[:READ_SAMPLES].tolist()
    with cost() as spent:
        samples = [store[index] for index in order]
        read = spent()
    with cost() as spent:
        for sample in samples:
            for image in sample.images:
                image.open()
        decode = spent()
    return tuple(1e3 * each.cpu_seconds / len(order) for each in (read, decode))  # type: ignore[return-value]


def measure(annotations: int, samples: int, workers: int) -> dict[str, float]:
    """Seconds of the build and of its floors, memory, and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(annotations, samples, workers, Path(folder))


def _measure(annotations: int, samples: int, workers: int, folder: Path) -> dict[str, float]:
    rng = np.random.default_rng(0)
    names = write_images(folder / "images", -(-annotations // BOXES_PER_IMAGE), rng)
    write_annotations(folder / "instances.json", names, annotations, rng)
    command = [sys.executable, "-m", "data.build", "locus", "--annotations", str(folder / "instances.json")]
    command += ["--images", str(folder / "images"), "--out", str(folder / "out"), "--train", str(samples)]
    command += ["--validation", "0", "--workers", str(workers)]
    with cost() as spent:
        peak_main, peak_tree = peak_memory(command)
        ours = spent()
    crops = crops_of(folder / "out")
    floor, cues = (all_of(work, crops, workers) for work in (decode_and_crop, decode_and_encode))
    read_ms, decode_ms = reading(folder / "out", rng)
    return {
        "annotations": annotations,
        "images_opened": len(crops),
        "samples": sum(len(regions) for _, regions in crops),
        "workers": workers,
        "seconds": round(ours.seconds, 2),
        "floor_seconds": round(floor.seconds, 2),
        "ratio": round(ours.seconds / floor.seconds, 2),
        "cpu_seconds": round(ours.cpu_seconds, 2),
        "floor_cpu_seconds": round(floor.cpu_seconds, 2),
        "cpu_ratio": round(ours.cpu_seconds / floor.cpu_seconds, 2),
        "cues_cpu_seconds": round(cues.cpu_seconds, 2),
        "cues_cpu_ratio": round(ours.cpu_seconds / cues.cpu_seconds, 2),
        "read_cpu_ms": round(read_ms, 3),
        "read_decode_cpu_ms": round(decode_ms, 3),
        "read_ratio": round(read_ms / decode_ms, 2),
        "samples_per_second": round(samples / ours.seconds, 1),
        "peak_main_mib": round(peak_main, 1),
        "peak_all_processes_mib": round(peak_tree, 1),
    }


def rows(quick: bool) -> list[Row]:
    """Row of `make bench`: a third of the default's annotations, the same share of them chosen; processor time."""
    taken = [measure(33_000, 5_500, available_cores()) for _ in range(2 if quick else 3)]
    ratio = ratio_of([each["floor_cpu_seconds"] for each in taken], [each["cpu_seconds"] for each in taken])
    floor, cues = (statistics.median(each[f"{name}_cpu_seconds"] for each in taken) for name in ("floor", "cues"))
    return [
        Row(
            name="5,500 samples of 33,000 annotations",
            value=statistics.median(each["cpu_seconds"] for each in taken),
            unit="s",
            floor=f"decode and crop {floor:.3g} s",
            ratio=ratio.median,
            how=f"processor time, {len(taken)} of each in turn; with the cues encoded {cues:.3g} s",
            low=ratio.low,
            high=ratio.high,
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=16_500)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    figures = measure(args.annotations, args.samples, args.workers)
    render = partial(json.dumps, indent=2) if args.json else _as_lines
    print(render(figures))


def _as_lines(figures: dict[str, float]) -> str:
    return "\n".join(f"{name:24} {value:>12,}" for name, value in figures.items())


if __name__ == "__main__":
    main()

"""Weight sync by medium: bytes, seconds, extra memory on both sides, and the share of what the medium alone moves.

    python -m tests.bench.bench_weight_sync [--media shared_memory gloo object_store] [--repeats 3] [--bucket-mb 16] [--json]

A learner's process sends the weights of a Qwen2-VL-shaped model (fp32, some 300 MB), then a LoRA adapter of it alone, to one
sampler's process and to two, which take checksums and throw away. The medium alone, in the same processes: one tensor of
128 MiB copied in, moved, copied out, without names, checksums or a control line. A transfer overlaps what the medium alone
does one after the other, so it may pass 100 %. Extra memory is the growth of a process's peak (VmHWM, reset before each
transfer); Ray's store is mapped into a process and counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from cluster.config import ClusterConfig
from cluster.group import ActorGroup
from cluster.placement import RoleSpec, place
from cluster.session import ray_session
from rl.config import LoraConfig
from rl.sync.line import Address
from rl.sync.media import MEDIA, Inlet, Outlet, Party
from rl.sync.receiver import Arrival, Feed, Way
from rl.sync.seats import Seat
from rl.sync.sender import Sender
from rl.tiny_backbone import ARCHITECTURES, write
from rl.weights import checksum
from tests.bench.rows import Row as BenchRow

NAME = "Weight sync"
CPU_MEDIA = tuple(name for name, medium in MEDIA.items() if medium.device_type == "cpu")
ALONE_BYTES = 128 << 20
STORE_MB = 600
TIMEOUT_S = 300.0
SHAPE = replace(
    ARCHITECTURES["qwen2_vl"].shape,
    hidden_size=1024,
    intermediate_size=2816,
    layers=7,
    heads=8,
    kv_heads=2,
    mrope_section=(16, 24, 24),
    vision_hidden_size=256,
    vision_intermediate_size=1024,
    vision_heads=4,
)
LORA = LoraConfig(rank=32, alpha=64)


@dataclass(frozen=True)
class Row:
    """One transfer: the median time of several, the most memory. Bytes are counted once, however many samplers get them."""

    medium: str
    samplers: int
    sent: str
    megabytes: float
    seconds: float
    gb_per_s: float
    medium_gb_per_s: float
    extra_mib_learner: float
    extra_mib_sampler: float

    @property
    def share(self) -> float:
        return self.gb_per_s / self.medium_gb_per_s


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def _reset_peak() -> float:
    """The peak, which afterwards is no more than what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_mib()


def _party(rank: int, samplers: int) -> Party:
    return Party(rank, samplers + 1, "127.0.0.1", torch.device("cpu"), ALONE_BYTES, TIMEOUT_S)


class Learner:
    """A learner's process: the weights of a model, and an adapter's."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.outlet: Outlet
        self.sender: Sender

    def build(self, folder: str) -> dict[str, float]:
        """What can be sent, and its megabytes."""
        from peft import get_peft_model
        from transformers import AutoModelForImageTextToText

        from rl.policy import peft_config

        base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        weights = dict(base.state_dict())
        adapted = get_peft_model(base, peft_config(LORA)).state_dict()
        adapter = {name: tensor for name, tensor in adapted.items() if ".lora_" in name}
        self.held = {"weights": weights, "adapter": adapter}
        self.content = torch.ones(ALONE_BYTES, dtype=torch.uint8)
        return {what: sum(tensor.nbytes for tensor in held.values()) / 1e6 for what, held in self.held.items()}

    def open(self, medium: str, samplers: int, bucket_bytes: int) -> Address:
        self.sender = Sender(medium, "127.0.0.1", samplers, bucket_bytes, TIMEOUT_S)
        return self.sender.address

    def send(self, what: str, version: int) -> tuple[float, float]:
        """Seconds, and extra MiB."""
        before, began = _reset_peak(), time.perf_counter()
        self.sender.send(version, self.held[what].items())
        return time.perf_counter() - began, _peak_mib() - before

    def close(self) -> None:
        self.sender.close()
        self.outlet.close()

    def invite(self, medium: str, samplers: int) -> Any:
        self.outlet = MEDIA[medium].outlet(_party(0, samplers))
        return self.outlet.invitation()

    def open_alone(self) -> None:
        self.outlet.open()

    def send_alone(self) -> Any:
        self.outlet.staging(0).copy_(self.content)
        return self.outlet.send(0, ALONE_BYTES)


class Sampler:
    """A sampler's process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.inlet: Inlet

    def receive(self, arrival: Arrival) -> tuple[float, str]:
        """Extra MiB, and the checksum."""
        before = _reset_peak()
        received = checksum(arrival)
        return _peak_mib() - before, received

    def join(self, medium: str, rank: int, samplers: int, invitation: Any) -> None:
        self.inlet = MEDIA[medium].inlet(_party(rank, samplers), invitation)
        self.buffer = torch.ones(ALONE_BYTES, dtype=torch.uint8)

    def receive_alone(self, token: Any) -> None:
        self.inlet.take(token, self.buffer, lambda: None)

    def leave(self) -> None:
        self.inlet.close()


class Bench:
    """The processes, and what is measured with them."""

    def __init__(self, learner: ActorGroup, samplers: ActorGroup, bucket_bytes: int, repeats: int) -> None:
        self.learner, self.samplers = learner, samplers
        self.bucket_bytes, self.repeats = bucket_bytes, repeats
        self.version = 0

    def rows(self, medium: str, count: int, sizes: dict[str, float]) -> list[Row]:
        samplers = ActorGroup("sampler", self.samplers.actors[:count])
        alone = self._alone(medium, samplers)
        (address,) = self.learner.call_all("open", medium, count, self.bucket_bytes)
        way = Way(medium, (Feed(Seat.here(torch.device("cpu")), address),), TIMEOUT_S)
        rows = []
        for what, megabytes in sizes.items():
            times, ours, theirs = zip(*(self._transfer(way, what, samplers) for _ in range(self.repeats + 1)), strict=True)
            seconds = statistics.median(times[1:])
            speed = megabytes / 1e3 / seconds
            rows.append(Row(medium, count, what, megabytes, seconds, speed, alone, max(ours), max(theirs)))
        self.learner.call_all("close")
        return rows

    def _transfer(self, way: Way, what: str, samplers: ActorGroup) -> tuple[float, float, float]:
        self.version += 1
        receiving = samplers.submit_all("receive", way.arrival(self.version))
        ((seconds, extra),) = self.learner.call_all("send", what, self.version)
        received = samplers.collect("receive", receiving)
        assert len({digest for _, digest in received}) == 1
        return seconds, extra, max(more for more, _ in received)

    def _alone(self, medium: str, samplers: ActorGroup) -> float:
        """GB/s of the medium; the first round warms up."""
        count = len(samplers)
        (invitation,) = self.learner.call_all("invite", medium, count)
        joining = samplers.submit_each("join", [(medium, rank, count, invitation) for rank in range(1, count + 1)])
        self.learner.call_all("open_alone")
        samplers.collect("join", joining)
        seconds = []
        for _ in range(self.repeats + 1):
            began = time.perf_counter()
            (token,) = self.learner.call_all("send_alone")
            samplers.call_all("receive_alone", token)
            seconds.append(time.perf_counter() - began)
        samplers.call_all("leave")
        return ALONE_BYTES / 1e9 / statistics.median(seconds[1:])


def memcpy_gb_per_s() -> float:
    source, target = (torch.ones(ALONE_BYTES, dtype=torch.uint8) for _ in range(2))
    began = time.perf_counter()
    for _ in range(5):
        target.copy_(source)
    return 5 * ALONE_BYTES / 1e9 / (time.perf_counter() - began)


def measure(media: Sequence[str], repeats: int, bucket_mb: int) -> list[Row]:
    session = ray_session(ClusterConfig(address="local", local_cpus=4, local_object_store_mb=STORE_MB))
    with tempfile.TemporaryDirectory() as folder, session:
        write(Path(folder), shape=SHAPE, architecture="qwen2_vl")
        placement = place([RoleSpec("learner", 1), RoleSpec("sampler", 2)], timeout_s=60)
        learner = ActorGroup.start("learner", Learner, placement["learner"], timeout_s=TIMEOUT_S)
        samplers = ActorGroup.start("sampler", Sampler, placement["sampler"], timeout_s=TIMEOUT_S)
        (sizes,) = learner.call_all("build", folder)
        bench = Bench(learner, samplers, bucket_mb << 20, repeats)
        return [row for medium in media for count in (1, 2) for row in bench.rows(medium, count, sizes)]


def rows(quick: bool) -> list[BenchRow]:
    """Rows of `make bench`: the whole weights, by medium and number of samplers."""
    torch.set_num_threads(1)
    found = measure(CPU_MEDIA, repeats=3 if quick else 5, bucket_mb=16)
    return [
        BenchRow(
            name=f"{row.megabytes:.0f} MB of weights to {row.samplers}, {row.medium}",
            value=row.gb_per_s,
            unit="GB/s",
            floor=f"the medium alone {row.medium_gb_per_s:.2f} GB/s",
            ratio=row.share,
            how=f"{row.seconds:.3f} s; a transfer overlaps what the medium alone does one after the other",
        )
        for row in found
        if row.sent == "weights"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="weight sync from a learner's process to samplers', by medium")
    parser.add_argument("--media", nargs="+", choices=CPU_MEDIA, default=CPU_MEDIA)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bucket-mb", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    copied = memcpy_gb_per_s()
    rows = measure(arguments.media, arguments.repeats, arguments.bucket_mb)
    if arguments.json:
        print(json.dumps({"memcpy_gb_per_s": copied, "rows": [asdict(row) | {"share": row.share} for row in rows]}))
        return
    title = f"Weight sync, buckets of {arguments.bucket_mb} MiB; extra MiB of either side; memcpy moves {copied:.2f} GB/s"
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title=title)
    headings = ("medium", "to", "sent", "MB", "s", "GB/s", "alone", "share", "learner", "sampler")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("medium", "sent") else "right")
    for row in rows:
        numbers = (f"{row.megabytes:.1f}", f"{row.seconds:.3f}", f"{row.gb_per_s:.2f}", f"{row.medium_gb_per_s:.2f}")
        extra = (f"{row.share:.0%}", f"{row.extra_mib_learner:.0f}", f"{row.extra_mib_sampler:.0f}")
        table.add_row(row.medium, str(row.samplers), row.sent, *numbers, *extra)
    Console().print(table)


if __name__ == "__main__":
    main()

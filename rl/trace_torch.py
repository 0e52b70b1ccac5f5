"""TorchEvents: what torch's profiler saw of this process, operators and kernels, as events on the recorder's axis."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from rl.trace import TORCH, Event

# Of torch's categories; the others mark how these belong together.
SHOWN = frozenset({"cpu_op", "user_annotation", "kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime"})
STREAMS = 1 << 16  # more than a device has streams


class TorchEvents:
    """`rl.trace.Source` over one recording. All threads: an engine has one of its own."""

    def begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, experimental_config=_ExperimentalConfig(profile_all_threads=True))
        self._profile.start()

    def end(self) -> list[Event]:
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="sightline-trace-") as folder:
            path = Path(folder) / "torch.json"
            self._profile.export_chrome_trace(str(path))
            exported = json.loads(path.read_text())
        return list(_events(exported))


def _events(exported: Mapping[str, Any]) -> Iterator[Event]:
    """torch counts microseconds from `baseTimeNanoseconds`; its threads on the host are the system's, on a GPU streams."""
    base, process = int(exported["baseTimeNanoseconds"]), os.getpid()
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for event in exported["traceEvents"]:
        if event["ph"] != "X" or event.get("cat") not in SHOWN:
            continue
        began, lasted = base + round(event["ts"] * 1000), round(event["dur"] * 1000)
        if event["pid"] == process:
            thread = int(event["tid"])
            yield Event(event["name"], began, lasted, thread, names.get(thread, f"thread {thread}"), TORCH)
        else:
            device, stream = int(event["pid"]), int(event["tid"])
            row = -(device * STREAMS + stream + 1)
            yield Event(event["name"], began, lasted, row, f"GPU {device}, stream {stream}", TORCH)

"""The end of an actor's log, where this machine can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray._private import state as ray_state
from ray.actor import ActorHandle

_LINES = 20
_BYTES = 16_384


def log_tail(actor: ActorHandle[Any]) -> str:
    """The last lines of the actor's stderr, or of its stdout when that is empty.

    On another node the files are out of reach: then the command that fetches them. Empty if it never had a process.
    """
    record = ray_state.actors(actor._actor_id.hex())
    if not record.get("Pid"):
        return ""
    if record["Address"]["NodeID"] not in ("", ray.get_runtime_context().get_node_id()):
        return f"on {record['Address']['IPAddress']}; see it with: ray logs actor --id {record['ActorID']}"
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for stream in ("err", "out"):
        for path in logs.glob(f"worker-*-{record['Pid']}.{stream}"):
            if lines := _last_lines(path):
                return "\n".join(f"  {line}" for line in lines)
    return ""


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _BYTES))
        # Ray marks the lines of a log with control records for its own reader.
        lines = [line for line in log.read().decode(errors="replace").splitlines() if not line.startswith(":")]
    return lines[-_LINES:]

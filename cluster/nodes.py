"""Waits until a Ray cluster has its nodes: `python -m cluster.nodes ADDRESS COUNT TIMEOUT_S`, for launch scripts.

Exit status 0 as soon as COUNT nodes are up, 1 with what there is when they are not after TIMEOUT_S seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence


def nodes_up(address: str) -> list[str]:
    """The addresses of the nodes that are up; none while the head does not answer."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo
    from ray.exceptions import RpcError

    try:
        nodes = GcsClient(address=address).get_all_node_info(timeout=10, state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
    except RpcError:
        return []
    return sorted(node.node_manager_address for node in nodes.values())


def wait_for_nodes(address: str, count: int, timeout_s: float) -> list[str]:
    """The nodes' addresses once there are `count` of them. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while len(found := nodes_up(address)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{len(found)} of {count} nodes are up at {address} after {timeout_s:g} s: {', '.join(found) or 'none'}; "
                f"do the others reach that address, and have they the same Ray?"
            )
        time.sleep(1.0)
    return found


def main(argv: Sequence[str]) -> int:
    address, count, timeout_s = argv
    try:
        print(f"{count} nodes are up: {', '.join(wait_for_nodes(address, int(count), float(timeout_s)))}", flush=True)
    except TimeoutError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

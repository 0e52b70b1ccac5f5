"""Which GPUs are this process's own, among those that it sees."""

from __future__ import annotations

import os

import ray


def own_device() -> int:
    """The index, in this process's numbering, of the GPU that Ray gave this actor; 0 where it sees one or none.

    Ray narrows CUDA_VISIBLE_DEVICES to the actor's own GPU, and so does a slot on shared GPUs: index 0 then, whichever GPU
    of the machine it is and however many ranks share the machine. Only where the administrator told Ray to leave that
    variable alone (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES) does every rank see all GPUs, and must pick.
    """
    own = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not own:
        return 0
    return visible.split(",").index(own[0]) if visible else int(own[0])


def see_own_devices_alone() -> None:
    """Hide all GPUs but those that Ray gave this actor from libraries that take the first they see; before CUDA starts.

    Changes nothing but where Ray leaves that variable alone; see `own_device`. A slot on shared GPUs has none of Ray's.
    """
    if own := ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)

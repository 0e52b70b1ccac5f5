"""GPUs: the data sheets' figures that a roofline needs, found by a loosely written name. Imports nothing heavy.

Capacities are what the driver reports (`nvidia-smi`, memory.total), which is what programs share; links count one
direction. Data sheets quote links in both directions together and some tensor rates with sparsity: both are halved here.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

MIB = 1 << 20
PCIE4, PCIE5 = 32e9, 64e9  # sixteen lanes, one direction
TERA = 1e12


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `nvlink` is 0 where GPUs of a node meet over PCIe; `usd_per_hour` None where no list price is known here."""

    name: str
    memory_bytes: int
    bf16_flops: float  # dense, with float32 accumulation
    hbm_bytes_per_s: float
    nvlink_bytes_per_s: float
    pcie_bytes_per_s: float
    node_nic_bytes_per_s: float  # all NICs of the usual node of eight
    node_host_bytes: int
    usd_per_hour: float | None
    price_source: str

    @property
    def link_bytes_per_s(self) -> float:
        """Between two GPUs of a node."""
        return self.nvlink_bytes_per_s or self.pcie_bytes_per_s


_SURVEY = "mid list price of specialist clouds, mercatus-ai.com, May 2026"
_BLOCKS = "AWS Capacity Blocks list, December 2024"
_NONE = "no list price known here"

# memory.total of nvidia-smi: modal-labs/modal-client PR 2797 (A100, H100, L40S, L4, A10G). Rates: NVIDIA's data sheets
# A100 (1758950-r4), H100 (2287922), H200 (3002446), H20, L40S (2671200), L4, A10, RTX A6000, DGX B200. NICs and host
# memory: DGX A100 (8 × 200 Gb/s, 1 or 2 TB), DGX H100/H200/B200 (8 × 400 Gb/s, 2 TB); PCIe machines: 2 × 200 Gb/s, 1 TB.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40G", 40960 * MIB, 312 * TERA, 1555e9, 300e9, PCIE4, 200e9, 1 << 40, 1.84, _BLOCKS),
        Gpu("A100-80G", 81920 * MIB, 312 * TERA, 2039e9, 300e9, PCIE4, 200e9, 2 << 40, 1.30, _SURVEY),
        Gpu("A100-80G-PCIe", 81920 * MIB, 312 * TERA, 1935e9, 0.0, PCIE4, 50e9, 1 << 40, 1.30, _SURVEY),
        Gpu("A100-40G-PCIe", 40960 * MIB, 312 * TERA, 1555e9, 0.0, PCIE4, 50e9, 1 << 40, 1.84, _BLOCKS),
        Gpu("H100", 81559 * MIB, 989.4 * TERA, 3350e9, 450e9, PCIE5, 400e9, 2 << 40, 3.00, _SURVEY),
        Gpu("H100-PCIe", 81559 * MIB, 756 * TERA, 2000e9, 0.0, PCIE5, 50e9, 1 << 40, 3.00, _SURVEY),
        Gpu("H200", 143771 * MIB, 989.4 * TERA, 4800e9, 450e9, PCIE5, 400e9, 2 << 40, 4.00, _SURVEY),
        Gpu("H20", 97871 * MIB, 148 * TERA, 4000e9, 450e9, PCIE5, 400e9, 2 << 40, None, _NONE),
        Gpu("B200", 183359 * MIB, 2250 * TERA, 7700e9, 900e9, PCIE5, 400e9, 2 << 40, None, _NONE),
        Gpu("L40S", 46068 * MIB, 362 * TERA, 864e9, 0.0, PCIE4, 50e9, 1 << 40, None, _NONE),
        Gpu("L4", 23034 * MIB, 121 * TERA, 300e9, 0.0, PCIE4, 50e9, 1 << 40, None, _NONE),
        Gpu("A10G", 23028 * MIB, 70 * TERA, 600e9, 0.0, PCIE4, 50e9, 1 << 40, None, _NONE),
        Gpu("RTX-A6000", 49140 * MIB, 154.8 * TERA, 768e9, 0.0, PCIE4, 50e9, 1 << 40, None, _NONE),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of a loosely written name: case, blanks, hyphens, "NVIDIA" and "SXM4" do not matter, nor "80GB" for "80G".

    Raises ValueError for none, with the nearest, and for several, with all.

    >>> find_gpu("NVIDIA A100-SXM4-80GB").name
    'A100-80G'
    """
    wanted = _words(name)
    exact = [gpu for gpu in GPUS.values() if set(_words(gpu.name)) == set(wanted)]
    found = exact or [gpu for gpu in GPUS.values() if wanted and set(wanted) <= set(_words(gpu.name))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"plan.gpu is `{name}`, which may be {', '.join(gpu.name for gpu in found)}; name one")
    near = difflib.get_close_matches(name.upper(), list(GPUS), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`? " if near else ""
    raise ValueError(f"plan.gpu is `{name}`; {hint}one of {', '.join(GPUS)}")


def _words(name: str) -> list[str]:
    """What tells a GPU from others: `NVIDIA A100-SXM4-80GB` → [A100, 80G]. A lone capacity is part of most names."""
    parts = re.findall(r"[A-Z]*\d+[A-Z]*|[A-Z]+", name.upper())
    noise = {"NVIDIA", "TESLA", "HBM3", "HBM3E", "HBM2E", "GPU", "SXM", "SXM4", "SXM5", "SXM6", "NVL"}
    words = [re.sub(r"^(\d+)GI?B$", r"\1G", part) for part in parts]
    kept = [word for word in words if word not in noise]
    # One capacity only, so it says nothing: H100 80G is H100.
    alone = {"H100": "80G", "H200": "141G", "L40S": "48G", "L4": "24G", "A10G": "24G", "A6000": "48G", "B200": "180G"}
    return [word for word in kept if word not in {alone.get(other) for other in kept}]

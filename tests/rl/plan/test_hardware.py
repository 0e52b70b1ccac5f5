"""Hardware: names loosely written, what a node defaults to, and figures that cannot be a mixture of two data sheets."""

from __future__ import annotations

import pytest

from rl.config import ConfigError, load_recipe
from rl.plan.config import PlanConfig
from rl.plan.gpus import GPUS, find_gpu
from rl.plan.hardware import hardware_of


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("A100-80G", "A100-80G"),
        ("a100 80gb", "A100-80G"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA A100 80GB PCIe", "A100-80G-PCIe"),
        ("NVIDIA A100-PCIE-40GB", "A100-40G-PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100-40G"),
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("h200-141gb", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX A6000", "RTX-A6000"),
    ],
)
def test_a_gpu_is_found_by_the_name_that_people_and_nvidia_smi_write(written: str, name: str) -> None:
    assert find_gpu(written).name == name


def test_a_name_of_several_gpus_is_refused_with_all_of_them() -> None:
    with pytest.raises(ValueError, match=r"A100-40G, A100-80G, A100-80G-PCIe"):
        find_gpu("a100")


@pytest.mark.parametrize(("written", "near"), [("H10", "H100"), ("A100-80", "A100-80G"), ("L40", "L40S")])
def test_an_unknown_name_is_refused_with_the_nearest(written: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean `{near}`"):
        find_gpu(written)


def test_nothing_is_mistaken_for_every_gpu() -> None:
    with pytest.raises(ValueError, match="one of A100-40G"):
        find_gpu("NVIDIA")


def test_a_gpus_figures_are_in_their_units() -> None:
    for gpu in GPUS.values():
        assert 20e9 < gpu.memory_bytes < 200e9
        assert 50e12 < gpu.bf16_flops < 3e15
        assert 200e9 < gpu.hbm_bytes_per_s < 10e12
        assert gpu.pcie_bytes_per_s < gpu.link_bytes_per_s * 2 < gpu.hbm_bytes_per_s
        assert (gpu.usd_per_hour is None) == (gpu.price_source == "no list price known here")


def test_a_node_is_the_vendors_unless_the_recipe_says_otherwise() -> None:
    usual = hardware_of(PlanConfig(gpu="A100-80G", nodes=2))
    assert usual is not None
    assert (usual.gpus, usual.nic_bytes_per_s, usual.host_bytes) == (16, 200e9, 2 << 40)
    own = hardware_of(PlanConfig(gpu="a100-80g", nic_gbit=400, host_memory_gb=1152, price=3.5))
    assert own is not None
    assert (own.nic_bytes_per_s, own.host_bytes, own.usd_per_gpu_hour) == (50e9, 1_152_000_000_000, 3.5)
    assert hardware_of(PlanConfig()) is None


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("plan.nodes=0", "plan.nodes must be positive, got 0"),
        ("plan.gpus_per_node=-1", "plan.gpus_per_node must be positive"),
        ("plan.compute_efficiency=1.5", "plan.compute_efficiency is a share"),
        ("plan.longest_answer=0.5", "plan.longest_answer is a multiple"),
        ("plan.price=-1", "plan.price is dollars"),
        ("plan.gpu=H10", "plan.gpu is `H10`; did you mean `H100`"),
        ("plan.node=2", "did you mean `plan.nodes`"),
    ],
)
def test_values_that_cannot_be_are_refused_by_key(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_recipe("recipes/locus/tiny.yaml", [override])

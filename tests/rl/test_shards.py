"""Shards on disk: pieces that ranks wrote come back whole, for any cut, and a folder that is not whole is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.engines.shards import Extent, Shard, ShardReader, write_shards

PARAMETERS = {"embed": torch.arange(10.0), "norm": torch.tensor([7.0]), "head": torch.arange(100.0, 106.0)}
# Three ranks, as ZeRO-2 cuts: one slice each of all parameters end to end. The norm is rank 1's alone.
CUTS = [[("embed", 0, 6)], [("embed", 6, 4), ("norm", 0, 1), ("head", 0, 1)], [("head", 1, 5)]]


def tensors(name: str, start: int, length: int) -> dict[str, Tensor]:
    values = PARAMETERS[name][start : start + length]
    return {"master": values, "exp_avg": -values}


def write(directory: Path, ranks: tuple[int, ...] = (0, 1, 2), steps: float | None = 5.0) -> None:
    for rank in ranks:
        shards = [
            Shard(Extent(name, at, size, len(PARAMETERS[name])), tensors(name, at, size)) for name, at, size in CUTS[rank]
        ]
        write_shards(directory, rank, 3, shards, steps)


def test_any_cut_is_read_from_whoever_wrote_it(tmp_path: Path) -> None:
    write(tmp_path / "new" / "folder")
    reader = ShardReader(tmp_path / "new" / "folder")
    assert reader.steps == 5.0
    assert reader.sizes == {"embed": 10, "norm": 1, "head": 6}
    for name, whole in PARAMETERS.items():
        for start in range(len(whole)):
            for length in range(1, len(whole) - start + 1):
                extent = Extent(name, start, length, len(whole))
                assert torch.equal(reader.read("master", extent), whole[start : start + length])
                assert torch.equal(reader.read("exp_avg", extent), -whole[start : start + length])


def test_a_piece_of_nothing_is_read_as_nothing(tmp_path: Path) -> None:
    """A parameter of fewer elements than ranks leaves some without any."""
    write(tmp_path)
    assert ShardReader(tmp_path).read("master", Extent("norm", 1, 0, 1)).numel() == 0


def test_before_the_first_step_there_is_no_count(tmp_path: Path) -> None:
    write(tmp_path, steps=None)
    assert ShardReader(tmp_path).steps is None


def test_a_folder_that_lacks_a_rank_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ranks=(0, 2))
    with pytest.raises(ValueError, match="2 ranks, 3 wrote them"):
        ShardReader(tmp_path)


def test_a_folder_of_another_engine_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"a distributed checkpoint")
    with pytest.raises(ValueError, match=r"learner\.engine=fsdp"):
        ShardReader(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "zero-00000-of-00003.safetensors").mkdir()
    with pytest.raises(OSError, match="rank 0 could not write"):
        write(tmp_path, ranks=(0,))

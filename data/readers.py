"""The datasets that the FOCUS builder reads, by name. A new one is a module with a `Reader` and one line here."""

from __future__ import annotations

from data.burst import read_permirs
from data.got10k import read_got10k
from data.lasot import read_lasot
from data.perseg import read_perseg
from data.tao import read_tao
from data.track import Reader

READERS: dict[str, Reader] = {
    "lasot": read_lasot,
    "got10k": read_got10k,
    "tao": read_tao,
    "perseg": read_perseg,
    "permirs": read_permirs,
}

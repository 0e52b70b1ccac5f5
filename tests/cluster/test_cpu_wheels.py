"""The repacked wheel: nothing compiled, a local version, a RECORD that pip accepts."""

from __future__ import annotations

import base64
import csv
import hashlib
import zipfile
from pathlib import Path

import pytest

from cluster.cpu_wheels import repack

META = b"Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\nRequires-Dist: torch\n"
WHEEL = b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-manylinux_2_28_x86_64\n"
REGISTRATIONS = b"import torch.library\nimport torchvision.extension  # noqa: F401\n\nlib = None\n"


def wheel(folder: Path, registrations: bytes = REGISTRATIONS) -> Path:
    path = folder / "torchvision-0.28.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torchvision/_C.so", b"\x7fELF")
        archive.writestr("torchvision.libs/libpng16.1c0b398e.so.16", b"\x7fELF")
        archive.writestr("torchvision/_meta_registrations.py", registrations)
        archive.writestr("torchvision/some.something.py", b"kept = True\n")
        for name, content in (("METADATA", META), ("WHEEL", WHEEL), ("RECORD", b"")):
            archive.writestr(f"torchvision-0.28.0.dist-info/{name}", content)
    return path


def test_it_has_no_shared_object_a_local_version_and_a_true_record(tmp_path: Path) -> None:
    made = repack(wheel(tmp_path), tmp_path)
    assert made.name == "torchvision-0.28.0+cpu-py3-none-any.whl"
    with zipfile.ZipFile(made) as archive:
        names = archive.namelist()
        assert not [name for name in names if ".so" in name and not name.endswith(".py")]
        assert "torchvision/some.something.py" in names
        info = "torchvision-0.28.0+cpu.dist-info"
        assert b"Version: 0.28.0+cpu\n" in archive.read(f"{info}/METADATA")
        assert archive.read(f"{info}/WHEEL").decode().splitlines()[-1] == "Tag: py3-none-any"
        rows = {row[0]: row[1] for row in csv.reader(archive.read(f"{info}/RECORD").decode().splitlines())}
        assert rows.keys() == set(names)
        for name in set(names) - {f"{info}/RECORD"}:
            digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
            assert rows[name] == f"sha256={digest}"
        assert b"nms(Tensor dets" not in REGISTRATIONS
        assert b'("nms", "qnms")' in archive.read("torchvision/_meta_registrations.py")


def test_a_release_that_registers_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="COMPANIONS"):
        repack(wheel(tmp_path, b"import torch\n"), tmp_path)


def test_the_installed_torchvision_imports_beside_this_torch() -> None:
    import torchvision

    assert torchvision.__version__.startswith("0.28.0")

"""Repacks PyPI's CUDA-linked torchvision, torchaudio and torchcodec into pure-Python wheels for a CPU torch.

Beside a CPU torch their compiled halves cannot load, and `import torchvision` fails with `torchvision::nms does not
exist`, which takes transformers, peft and vLLM with it. Nothing in this project calls a compiled op of theirs, so the
repacked wheel drops the shared objects, declares the two op schemas that torchvision registers at import, and carries
the local version `+cpu`. Standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from pathlib import Path

COMPANIONS = {"torchvision": "0.28.0", "torchaudio": "2.11.0", "torchcodec": "0.17.0"}

_NMS_SCHEMAS = """
if not torchvision.extension._has_ops():
    _schemas = torch.library.Library("torchvision", "FRAGMENT")
    for _op in ("nms", "qnms"):
        _schemas.define(f"{_op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def _is_compiled(name: str) -> bool:
    return ".so" in Path(name).name and re.search(r"\.so(\.\d+)*$", name) is not None


def _record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


def _patched(name: str, content: bytes, version: str, local: str) -> bytes:
    if name.endswith(".dist-info/METADATA"):
        return content.replace(f"\nVersion: {version}\n".encode(), f"\nVersion: {local}\n".encode(), 1)
    if name.endswith(".dist-info/WHEEL"):
        text = re.sub(r"(?m)^Tag: .*\n?", "", content.decode()).replace("Root-Is-Purelib: false", "Root-Is-Purelib: true")
        return (text.rstrip("\n") + "\nTag: py3-none-any\n").encode()
    if name == "torchvision/_meta_registrations.py":
        imports = re.compile(r"(?m)^import torchvision\.extension.*$")
        text, count = imports.subn(lambda found: found.group(0) + _NMS_SCHEMAS, content.decode())
        if count != 1:
            raise ValueError(
                f"{name} no longer has one `import torchvision.extension`: the pin in COMPANIONS moved, check the patch"
            )
        return text.encode()
    return content


def repack(wheel: Path, out_dir: Path) -> Path:
    """Write `<name>-<version>+cpu-py3-none-any.whl` beside nothing compiled, and return its path."""
    name, version = wheel.name.split("-")[:2]
    local = f"{version}+cpu"
    target = out_dir / f"{name}-{local}-py3-none-any.whl"
    old_info, new_info = f"{name}-{version}.dist-info/", f"{name}-{local}.dist-info/"
    record = []
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as sink:
        for entry in source.namelist():
            if _is_compiled(entry) or entry.endswith(("/", f"{old_info}RECORD")):
                continue
            content = _patched(entry, source.read(entry), version, local)
            entry = entry.replace(old_info, new_info, 1)
            sink.writestr(entry, content)
            record.append(_record_line(entry, content))
        sink.writestr(f"{new_info}RECORD", "\n".join([*record, f"{new_info}RECORD,,"]) + "\n")
    return target

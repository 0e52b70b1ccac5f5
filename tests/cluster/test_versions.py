"""Wrong versions are refused at once with the remedy."""

from __future__ import annotations

import pytest

from cluster import versions
from cluster.install import InstallError, check_python
from cluster.versions import VersionError, check_versions, pins


def test_this_environment_is_the_pinned_one() -> None:
    check_versions()
    assert {"torch", "transformers", "verl"} <= {pin.name for pin in pins()}


@pytest.mark.parametrize(("name", "there"), [("torch", "2.12.1+cpu"), ("transformers", "5.11.0"), ("verl", None)])
def test_another_version_is_named_with_the_pin(monkeypatch: pytest.MonkeyPatch, name: str, there: str | None) -> None:
    real = versions._installed
    monkeypatch.setattr(versions, "_installed", lambda asked: there if asked == name else real(asked))
    with pytest.raises(VersionError, match=rf"{name} .*needs ==.*make setup"):
        check_versions()


@pytest.mark.parametrize("version", [(3, 10), (3, 13), (2, 7)])
def test_setup_refuses_another_python_at_once(version: tuple[int, int]) -> None:
    with pytest.raises(InstallError, match=r"Python 3\.11 or 3\.12.*make setup PYTHON="):
        check_python(version)

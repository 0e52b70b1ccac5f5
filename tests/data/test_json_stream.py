"""The streaming JSON reader agrees with json.loads wherever the window's edge falls, and names the place of an error."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.json_stream
from data.json_stream import stream_arrays

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(text: str | bytes, keys: tuple[str, ...] = ("a", "b"), chunk: int = 1 << 20) -> list[tuple[str, Any]]:
    with TemporaryDirectory() as folder, patch.object(data.json_stream, "_CHUNK", chunk):
        path = Path(folder) / "file.json"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return list(stream_arrays(path, keys))


@given(
    arrays=st.permutations(["a", "b", "other", "info"]),
    elements=st.lists(values, max_size=4),
    scalar=values,
    chunk=st.integers(1, 9),
    indent=st.sampled_from([None, 1]),
    ascii=st.booleans(),
)
def test_same_elements_as_json_loads(
    arrays: list[str], elements: list[Any], scalar: Any, chunk: int, indent: int | None, ascii: bool
) -> None:
    """In any order of keys, any whitespace, with the window growing by 1 to 9 characters at first."""
    content = {key: scalar if key == "info" else elements for key in arrays}
    text = json.dumps(content, indent=indent, ensure_ascii=ascii)
    expected = [(key, value) for key in arrays if key in ("a", "b") for value in json.loads(text)[key]]
    assert read(text, chunk=chunk) == expected


def test_a_number_cut_by_the_window_is_not_read_short() -> None:
    assert read('{"a": [123456789, -1.5e10], "b": []}', chunk=1) == [("a", 123456789), ("a", -1.5e10)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "broken JSON at character 0"),
        ("[]", "expected '{'"),
        ('{"a": [1, 2', "ends too early"),
        ('{"a": [1, 2], "b": [{"x": 1}, {"x": ', "broken JSON at character 3"),
        ('{"a": [1 2], "b": []}', "broken JSON at character 9: expected ','"),
        ('{"a": [1], "b": [}', "broken JSON at character 17"),
        ('{"a": [1], "b": []} x', "after the end"),
        ('{"a": [1], "a": [2], "b": []}', "'a' appears twice"),
        ('{"a": {}, "b": []}', "'a' must be an array"),
        ('{"b": []}', "the key 'a' is missing"),
        ('{1: [], "b": []}', "key must be a string"),
        ('{"a": [tru], "b": []}', "broken JSON at character 7"),
        (b'{"a": ["\xff"], "b": []}', "not UTF-8"),
        ('{"a": ' + "[" * 200_000, "broken JSON"),
        ('{"a": [' + "9" * 5000 + '], "b": []}', "broken JSON at character 7"),
    ],
)
def test_a_broken_file_is_named_with_the_place(text: str | bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"file\.json") as caught:
        read(text)
    assert complaint in str(caught.value)


def test_an_unclosed_string_does_not_pull_the_whole_file_into_memory() -> None:
    """The element grows to the limit, then the reader gives up: here a limit of 100 characters in a file of a million."""
    with patch.object(data.json_stream, "_LARGEST_ELEMENT", 100), pytest.raises(ValueError, match="broken JSON") as caught:
        read('{"a": ["' + "x" * 1_000_000, chunk=16)
    assert "Unterminated string" in str(caught.value)

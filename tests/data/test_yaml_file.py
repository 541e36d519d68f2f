"""YAML that people wrote: what is given twice is said, however deep it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline.data.yaml_file import given_twice, read_yaml
from vllm_moe_prune.errors import PruneError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\nb: {a: 1}\n", None),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2}\n", None),
        ("a: &x [1, *x]\n", None),  # in itself
        ("a: 1\nb: 2\na: 3\n", "a is given twice (line 3)"),
        ("a:\n  - {b: 1}\n  - {c: 1, c: 1}\n", "c is given twice (line 3)"),
        ("a: !function utils.f\nb: {'a': 1, a: 2}\n", "a is given twice (line 2)"),
        ("", None),
        ("just words", None),
    ],
)
def test_a_key_that_is_there_twice_is_found(text: str, found: str | None) -> None:
    assert given_twice(text) == found


def test_a_file_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("a: 1\n2: {b: [c]}\n")
    assert read_yaml(file, "recipe") == {"a": 1, "2": {"b": ["c"]}}
    file.write_bytes(b"\x80\x81")
    with pytest.raises(PruneError, match=r"recipe\.yaml is not UTF-8 \(byte 0\)$"):
        read_yaml(file, "recipe")
    with pytest.raises(PruneError, match="is a folder"):
        read_yaml(tmp_path, "recipe")

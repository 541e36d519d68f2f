"""Files are read in one place, where they are bounded: tensors in a file of their own."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.floors import PACKAGES, ROOT, name_of

READER_FILES = ("vllm_moe_prune/reading.py", "vllm_moe_prune/tensor_files.py")
# What reads a file, or a text that came from one, as it is called in the source.
READERS = {
    *("json.loads", "json.load", "yaml.load", "yaml.safe_load", "yaml.full_load"),
    *("yaml.safe_load_all", "safe_open", "load_file", "safetensors.safe_open"),
}
METHODS = {"read_text"}
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def called(node: ast.expr) -> str:
    """Return ``json.loads`` of ``json.loads(...)``, and of a method of anything ``.read_text``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = called(node.value) if isinstance(node.value, ast.Name) else ""
        return f"{before}.{node.attr}"
    return ""


def reads(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = called(node.func)
            if name in READERS or (name.rpartition(".")[2] in METHODS and "." in name):
                yield f"{name} (line {node.lineno})"


def test_nothing_else_reads() -> None:
    found = {name_of(file): list(reads(file.read_text())) for file in SOURCES}
    assert all([found.pop(reader) for reader in READER_FILES])
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "line",
    [
        "json.loads(text)",
        "yaml.safe_load(text)",
        "with safe_open(file, framework='np') as one: pass",
        "path.read_text()",
        "(folder / 'a').read_text()",
        "dict(load_file(file))",
    ],
)
def test_what_reads_is_found(line: str) -> None:
    assert len(list(reads(line))) == 1

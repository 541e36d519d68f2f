"""An artefact names files, and not where they lay."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_moe_prune.provenance import Provenance

SETTINGS: list[tuple[Any, Any]] = [
    ("/home/me/text.txt", "text.txt"),
    ("prose=/home/me/text.txt:64,/data/more.txt", "prose=text.txt:64,more.txt"),
    ("text:/home/me/notes.txt#column", "text:notes.txt#column"),
    ({"a": ["/x/y/task.yaml@5", 3]}, {"a": ["task.yaml@5", 3]}),
    ("hf:Org/Name@v1/config:split", "hf:Org/Name@v1/config:split"),
    ("https://host/a/b", "https://host/a/b"),
    ("../here/text.txt", "../here/text.txt"),
    ("</think>", "</think>"),
    ("yes/no / maybe", "yes/no / maybe"),
    (0.5, 0.5),
    (None, None),
]


@pytest.mark.parametrize(("given", "told"), SETTINGS)
def test_what_is_told_has_no_absolute_path(given: Any, told: Any) -> None:
    assert Provenance.now("by hand", settings={"one": given}).settings == {"one": told}

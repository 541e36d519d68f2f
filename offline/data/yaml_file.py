"""YAML that people wrote: a key that is given twice is a mistake, and not the last of the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import MissingFileError, parse_yaml, read_text


def given_twice(text: str) -> str | None:
    """Return which key of a mapping is there twice, and where, in a text that is YAML.

    YAML forbids it, and PyYAML takes the last one and says nothing.
    """
    nodes, known = [yaml.compose(text, yaml.SafeLoader)], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in known:  # an alias
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                nodes.append(value)
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    return f"{key.value} is given twice (line {key.start_mark.line + 1})"
                if isinstance(key, yaml.ScalarNode):
                    seen.add(key.value)
    return None


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """Return a file's entries.

    :param what: the file is, in what is said of a mistake
    :raises PruneError: if it cannot be read, is no YAML, or is no table of settings
    """
    try:
        text = read_text(file, f"{what} ")
    except MissingFileError:
        raise PruneError(f"no {what} file at {file}") from None
    entries = parse_yaml(text, f"{what} {file}")
    if (twice := given_twice(text)) is not None:
        raise PruneError(f"{what} {file}: {twice}")
    if not isinstance(entries, dict):
        raise PruneError(f"{what} {file} is not a table of settings")
    return {str(name): entry for name, entry in entries.items()}

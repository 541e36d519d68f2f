"""YAML that people wrote: a key that is given twice is a mistake, and not the last of the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vllm_moe_prune.errors import PruneError


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
        text = file.read_text(encoding="utf-8")
        entries, twice = yaml.safe_load(text), given_twice(text)
    except FileNotFoundError:
        raise PruneError(f"no {what} file at {file}") from None
    except OSError as error:
        raise PruneError(f"{what} {file}: {error.strerror}") from None
    except RecursionError:
        raise PruneError(f"{what} {file} is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise PruneError(f"{what} {file} is not YAML: {error.reason}") from None
    except yaml.YAMLError as error:
        raise PruneError(f"{what} {file} is not YAML: {reason_of(error)}") from None
    if twice is not None:
        raise PruneError(f"{what} {file}: {twice}")
    if not isinstance(entries, dict):
        raise PruneError(f"{what} {file} is not a table of settings")
    return {str(name): entry for name, entry in entries.items()}


def reason_of(error: yaml.YAMLError) -> str:
    """Return in one line what is wrong, and in which line of the file where that is known."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{problem} (line {mark.line + 1})" if mark is not None else str(problem)

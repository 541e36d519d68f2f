"""What the name of a task must already tell of an lm-eval YAML file: how it is answered.

Read without lm-eval, which takes seconds to import.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline.tasks.prompting import sampled
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import parse_yaml, read_bytes

_UNTIL = "\n\n"  # lm-eval's own defaults: its separator between examples, and its length
_MAX_TOKENS = 256
FUNCTION = "!function "  # begins what stands for a function
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "output_type": ((str,), "a text"),
    "metric_list": ((list,), "a list"),
    "filter_list": ((list,), "a list"),
    "generation_kwargs": ((dict,), "a mapping"),
    "until": ((str, list), "a text or a list of texts"),
    "temperature": ((int, float), "a number"),
}


@dataclass(frozen=True, slots=True)
class YamlGeneration:
    """The settings of ``output_type: generate_until``; ``filters`` is ``filter_list`` as JSON."""

    until: tuple[str, ...]
    max_tokens: int
    filters: str | None


def generation_of(path: Path) -> YamlGeneration | None:
    """Return how a task's answers are generated, None if it is of another type.

    :raises PruneError: if the file is no YAML mapping or asks for what is not offered
    """
    fields = read_fields(path)
    if fields.get("output_type", "generate_until") != "generate_until":
        return None
    settings = fields.get("generation_kwargs") or {}
    until = settings.get("until", _UNTIL)
    max_tokens = settings.get("max_gen_toks", _MAX_TOKENS)
    stops = (until,) if isinstance(until, str) else tuple(until or ())
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise PruneError(f"task {path}: `until` is {until!r}, not a text or a list of texts")
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise PruneError(f"task {path}: `max_gen_toks` is {max_tokens!r}, not a positive number")
    filters = fields.get("filter_list")
    return YamlGeneration(stops, max_tokens, json.dumps(filters) if filters else None)


def is_plain(path: Path) -> bool:
    """Return whether a file is a question with choices, or with one right text to be generated.

    Such a task is asked and scored by this package's own rules (custom.py, answers.py); any other
    by lm-evaluation-harness.

    :raises PruneError: if the file cannot be read
    """
    fields = read_fields(path)
    output = fields.get("output_type", "generate_until")
    if {"class", "group"} & fields.keys() or fields.get("process_results") is not None:
        return False
    if (fields.get("repeats") or 1) != 1 or sampled(fields.get("generation_kwargs") or {}):
        return False
    metrics = [entry.get("metric") for entry in fields.get("metric_list") or ()]
    if output == "generate_until":
        one_filter = len(fields.get("filter_list") or ()) < 2
        return one_filter and (not metrics or "exact_match" in metrics)
    return bool(output == "multiple_choice")


def _own_fields(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise PruneError(f"cannot read task {path}: {error.strerror}") from None


@functools.lru_cache(maxsize=4096)
def _parsed(path: Path, changed: int) -> dict[str, Any]:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader: Any = type("Loader", (base,), {})
    folder = path.parent.resolve()
    loader.add_multi_constructor("!", lambda _, suffix, node: f"!{suffix} {folder}/{node.value}")
    fields = parse_yaml(read_bytes(path), f"cannot read task {path}: it", loader)
    if not isinstance(fields, dict):
        raise PruneError(f"cannot read task {path}: it is no mapping of YAML")
    _check_kinds(path, fields)
    return fields


def _check_kinds(path: Path, fields: dict[str, Any]) -> None:
    """Refuse what is of another kind than all readers of a task take it for."""
    options = fields.get("generation_kwargs")
    found = {**(options if isinstance(options, dict) else {}), **fields}
    for name, (kinds, told) in _KINDS.items():
        value = found.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise PruneError(f"task {path}: `{name}` is {str(value)[:60]!r}, not {told}")
    for name in ("metric_list", "filter_list"):
        wrong = [entry for entry in fields.get(name) or () if not isinstance(entry, dict)]
        if wrong:
            raise PruneError(f"task {path}: `{name}` has {str(wrong[0])[:60]!r}, not a mapping")


def read_fields(path: Path, depth: int = 0) -> dict[str, Any]:
    """Return the entries of a YAML file, those of the files that it includes first.

    Functions (``!function utils.answer``) are texts that begin with `FUNCTION`, with the whole
    path of their module.

    :raises PruneError: if the file or one that it includes cannot be read
    """
    fields = dict(_own_fields(path))
    includes = fields.pop("include", None) or ()
    found: dict[str, Any] = {}
    for include in [includes] if isinstance(includes, str) else includes:
        if depth >= 8:
            raise PruneError(f"cannot read task {path}: it includes itself")
        found |= read_fields(path.parent / include, depth + 1)
    return found | fields

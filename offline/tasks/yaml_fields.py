"""What the name of a task must already tell of a user's lm-eval YAML file: how it is answered.

Read without lm-eval, which takes seconds to import; custom.py then reads the items with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_moe_prune.errors import PruneError

_UNTIL = "\n\n"  # lm-eval's own defaults: its separator between examples, and its length
_MAX_TOKENS = 256


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
    fields = _fields(path)
    if fields.get("output_type", "generate_until") != "generate_until":
        return None
    _check(path, fields)
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


def _check(path: Path, fields: dict[str, Any]) -> None:
    """Refuse what would give other scores than the author of the task meant."""
    if (fields.get("generation_kwargs") or {}).get("do_sample"):
        raise PruneError(f"task {path}: `do_sample: true` cannot be used, answers are greedy")
    metrics = [entry.get("metric") for entry in fields.get("metric_list") or ()]
    if metrics and "exact_match" not in metrics:
        raise PruneError(
            f"task {path} is scored by {', '.join(map(str, metrics))}",
            hint="only `metric: exact_match` can be used with `output_type: generate_until`",
        )
    if len(fields.get("filter_list") or ()) > 1:
        raise PruneError(f"task {path} has several entries in `filter_list`, give one")
    if fields.get("process_results") is not None:
        raise PruneError(f"task {path}: a `process_results` function cannot be used")


def _fields(path: Path, depth: int = 0) -> dict[str, Any]:
    """Return the entries of a YAML file, those of the files that it includes first."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Knows lm-eval's ``!function`` as something opaque."""

    Loader.add_multi_constructor("!", lambda _, suffix, node: f"!{suffix} {node.value}")
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise PruneError(f"cannot read task {path}: {reason}") from None
    if not isinstance(fields, dict):
        raise PruneError(f"cannot read task {path}: it is no mapping of YAML")
    include = fields.pop("include", None)
    if isinstance(include, str) and depth < 8:
        return {**_fields(path.parent / include, depth + 1), **fields}
    return fields
